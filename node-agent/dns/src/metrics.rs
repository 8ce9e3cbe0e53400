//! What the server counts, as Prometheus text.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::upstream::Source;

/// In seconds; an answer from memory takes microseconds, one from upstream milliseconds.
const BUCKETS: [f64; 10] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    proto: &'static str,
    r#type: &'static str,
    rcode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Forwarded {
    source: &'static str,
}

/// Shared by the server and whoever shows it.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    answered: Family<Answered, Counter>,
    forwarded: Family<Forwarded, Counter>,
    duration: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("windlass_dns");
        let answered = Family::default();
        registry.register(
            "responses",
            "Queries answered, by transport, type asked for and response code",
            Family::clone(&answered),
        );
        let forwarded = Family::default();
        registry.register(
            "foreign_responses",
            "Queries for names outside the cluster, by where the answer came from",
            Family::clone(&forwarded),
        );
        let duration = Histogram::new(BUCKETS);
        registry.register_with_unit(
            "response_duration",
            "Time from a query to its answer",
            Unit::Seconds,
            duration.clone(),
        );
        Self(Arc::new(Inner {
            registry,
            answered,
            forwarded,
            duration,
        }))
    }
}

impl Metrics {
    /// The text that Prometheus scrapes.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.0.registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }

    pub(crate) fn answered(
        &self,
        over_udp: bool,
        kind: RecordType,
        code: ResponseCode,
        took: Duration,
    ) {
        let labels = Answered {
            proto: if over_udp { "udp" } else { "tcp" },
            r#type: type_name(kind),
            rcode: code_name(code),
        };
        self.0.answered.get_or_create(&labels).inc();
        self.0.duration.observe(took.as_secs_f64());
    }

    pub(crate) fn forwarded(&self, source: Source) {
        let source = match source {
            Source::Upstream => "upstream",
            Source::Memory => "cache",
            Source::Stale => "stale",
        };
        self.0.forwarded.get_or_create(&Forwarded { source }).inc();
    }
}

/// The usual ones by name: a client must not be able to make a series for each of 65,536 numbers.
fn type_name(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::SRV => "SRV",
        RecordType::PTR => "PTR",
        RecordType::CNAME => "CNAME",
        RecordType::TXT => "TXT",
        RecordType::MX => "MX",
        RecordType::NS => "NS",
        RecordType::SOA => "SOA",
        _ => "other",
    }
}

fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_what_they_were() {
        let metrics = Metrics::default();
        let took = Duration::from_micros(70);
        metrics.answered(true, RecordType::A, ResponseCode::NoError, took);
        metrics.answered(true, RecordType::A, ResponseCode::NoError, took);
        metrics.answered(
            false,
            RecordType::Unknown(4711),
            ResponseCode::NXDomain,
            took,
        );
        metrics.forwarded(Source::Stale);
        let text = metrics.text();
        for line in [
            "windlass_dns_responses_total{proto=\"udp\",type=\"A\",rcode=\"NOERROR\"} 2",
            "windlass_dns_responses_total{proto=\"tcp\",type=\"other\",rcode=\"NXDOMAIN\"} 1",
            "windlass_dns_foreign_responses_total{source=\"stale\"} 1",
            "windlass_dns_response_duration_seconds_count 3",
            "windlass_dns_response_duration_seconds_bucket{le=\"0.0001\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
