//! The metrics APIs, which other servers bring: metrics.k8s.io, custom.metrics.k8s.io and
//! external.metrics.k8s.io. A cluster may have none of them; then each question is answered with why.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{Client, core::Selector};
use serde::Deserialize;
use windlass_machinery::quantity::Quantity;

use super::replicas::{Sample, Samples};

pub(super) struct Metrics(pub(super) Client);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Named,
    timestamp: Option<Timestamp>,
    window: Option<String>,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    described_object: Option<Named>,
    timestamp: Option<Timestamp>,
    window_seconds: Option<i64>,
    value: String,
}

fn milli(text: &str) -> i64 {
    Quantity::parse(text).map_or(0, |quantity| quantity.milli_value())
}

/// Go's notation, of which metrics servers use `30s` and `1m0s`.
fn window(text: &str) -> SignedDuration {
    text.parse().unwrap_or(SignedDuration::from_secs(60))
}

/// A selector as a query parameter.
fn encoded(selector: &str) -> String {
    let mut encoded = String::new();
    for byte in selector.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn metric_selector(selector: Option<&LabelSelector>) -> String {
    let parsed = selector.and_then(|selector| Selector::try_from(selector.clone()).ok());
    match parsed {
        Some(selector) => encoded(&selector.to_string()),
        None => String::new(),
    }
}

impl Metrics {
    /// `absent` says that nobody serves the path.
    async fn get<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        absent: &str,
    ) -> Result<T, String> {
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|error| error.to_string())?;
        self.0.request(request).await.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 404 && status.reason != "NotFound" => {
                absent.to_owned()
            }
            kube::Error::Api(status) => status.message,
            other => other.to_string(),
        })
    }

    /// What each selected pod uses of a resource, in all its containers or in one.
    pub(super) async fn resource(
        &self,
        namespace: &str,
        selector: &str,
        resource: &str,
        container: Option<&str>,
    ) -> Result<Samples, String> {
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}",
            encoded(selector)
        );
        let absent = "the server could not find the requested resource (get pods.metrics.k8s.io)";
        let unable = |why| format!("unable to fetch metrics from resource metrics API: {why}");
        let list: List<PodMetrics> = self.get(&path, absent).await.map_err(unable)?;
        if list.items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        let sample = |pod: PodMetrics| {
            let measured = pod
                .containers
                .iter()
                .filter(|known| container.is_none_or(|name| known.name == name))
                .map(|known| known.usage.get(resource).map(|text| milli(text)));
            // One container without a measurement makes the pod's sum worthless.
            let values: Option<Vec<i64>> = measured.collect();
            let values = values.filter(|values| !values.is_empty())?;
            Some((
                pod.metadata.name,
                Sample {
                    value: values.iter().sum(),
                    at: pod.timestamp.unwrap_or_else(Timestamp::now),
                    window: pod
                        .window
                        .as_deref()
                        .map_or(SignedDuration::from_secs(60), window),
                },
            ))
        };
        Ok(list.items.into_iter().filter_map(sample).collect())
    }

    /// A metric that the application reports of each selected pod.
    pub(super) async fn pods(
        &self,
        namespace: &str,
        selector: &str,
        metric: &str,
        of: Option<&LabelSelector>,
    ) -> Result<Samples, String> {
        let path = format!(
            "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/*/{metric}?labelSelector={}\
             &metricLabelSelector={}",
            encoded(selector),
            metric_selector(of)
        );
        let list: List<MetricValue> = self.custom(&path).await?;
        let sample = |value: MetricValue| {
            let sample = Sample {
                value: milli(&value.value),
                at: value.timestamp.unwrap_or_else(Timestamp::now),
                window: SignedDuration::from_secs(value.window_seconds.unwrap_or(60)),
            };
            Some((value.described_object?.name, sample))
        };
        Ok(list.items.into_iter().filter_map(sample).collect())
    }

    /// A metric of one object; `resource` is its plural with its group.
    pub(super) async fn object(
        &self,
        namespace: &str,
        resource: &str,
        name: &str,
        metric: &str,
        of: Option<&LabelSelector>,
    ) -> Result<i64, String> {
        let path = format!(
            "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/{resource}/{name}/{metric}\
             ?metricLabelSelector={}",
            metric_selector(of)
        );
        let list: List<MetricValue> = self.custom(&path).await?;
        let first = list.items.first();
        first
            .map(|value| milli(&value.value))
            .ok_or_else(|| format!("no {metric} of {resource} {name}"))
    }

    async fn custom<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let absent = "no custom metrics API (custom.metrics.k8s.io) registered";
        let unable = |why| format!("unable to fetch metrics from custom metrics API: {why}");
        self.get(path, absent).await.map_err(unable)
    }

    /// A metric that has nothing to do with any object: the sum of its series.
    pub(super) async fn external(
        &self,
        namespace: &str,
        metric: &str,
        of: Option<&LabelSelector>,
    ) -> Result<i64, String> {
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}?labelSelector={}",
            metric_selector(of)
        );
        let absent = format!(
            "the server could not find the requested resource (get {metric}.external.metrics.k8s.io)"
        );
        let unable = |why| format!("unable to fetch metrics from external metrics API: {why}");
        let list: List<MetricValue> = self.get(&path, &absent).await.map_err(unable)?;
        if list.items.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(list.items.iter().map(|value| milli(&value.value)).sum())
    }
}
