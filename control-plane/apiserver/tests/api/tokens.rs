//! ServiceAccount tokens: whom they are for, what they end with, how long they live, who may have issued them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use windlass_apiserver::authn::Lifetimes;

use crate::server::*;

const ACCOUNT: &str = "/api/v1/namespaces/default/serviceaccounts/default";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

async fn ask(server: &Server, spec: Value) -> Answer {
    server
        .post(&format!("{ACCOUNT}/token"), &json!({"spec": spec}))
        .await
}

async fn token(server: &Server, spec: Value) -> String {
    let answer = ask(server, spec).await.ok();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

/// The status of a review of `token` for `audiences`.
async fn review(server: &Server, token: &str, audiences: Value) -> Value {
    let review = json!({"spec": {"token": token, "audiences": audiences}});
    server.post(REVIEWS, &review).await.ok()["status"].take()
}

fn claims(token: &str) -> Value {
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

#[tokio::test]
async fn a_token_is_for_its_audiences_alone() {
    let server = Server::start().await.with_default_account().await;
    let plain = token(&server, json!({})).await;
    assert_eq!(claims(&plain)["aud"], json!([ISSUER]));
    let status = review(&server, &plain, Value::Null).await;
    assert_eq!(status["authenticated"], true);
    assert_eq!(
        status["user"]["username"],
        "system:serviceaccount:default:default"
    );
    assert_eq!(
        status["user"]["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    let foreign = token(&server, json!({"audiences": ["vault", "mail"]})).await;
    assert_eq!(
        review(&server, &foreign, Value::Null).await["authenticated"],
        Value::Null
    );
    let status = review(&server, &foreign, json!(["mail", "other"])).await;
    assert_eq!(status["authenticated"], true);
    assert_eq!(status["audiences"], json!(["mail"]));
    // What is for others is no credential here.
    let request =
        http::Request::get("/api/v1/pods").header("authorization", format!("Bearer {foreign}"));
    server.send_as(None, request, "").await.refused(401);
}

#[tokio::test]
async fn a_token_ends_with_what_it_is_bound_to() {
    let server = Server::start().await.with_default_account().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let nodes = "/api/v1/nodes";
    server.post(PODS, &pod("bound")).await.ok();
    server
        .post(secrets, &json!({"metadata": {"name": "bound"}}))
        .await
        .ok();
    server
        .post(nodes, &json!({"metadata": {"name": "bound"}}))
        .await
        .ok();
    for (kind, path) in [("Pod", PODS), ("Secret", secrets), ("Node", nodes)] {
        let reference = json!({"apiVersion": "v1", "kind": kind, "name": "bound"});
        let bound = token(&server, json!({"boundObjectRef": reference})).await;
        let field = kind.to_lowercase();
        assert_eq!(claims(&bound)["kubernetes.io"][&field]["name"], "bound");
        let status = review(&server, &bound, Value::Null).await;
        assert_eq!(status["authenticated"], true, "{kind}: {status}");
        if kind == "Pod" {
            let extra = &status["user"]["extra"];
            assert_eq!(
                extra["authentication.kubernetes.io/pod-name"],
                json!(["bound"])
            );
        }
        let other = json!({"apiVersion": "v1", "kind": kind, "name": "bound", "uid": "another"});
        let refused = ask(&server, json!({"boundObjectRef": other}))
            .await
            .refused(409);
        let message = refused["message"].as_str().unwrap();
        assert!(
            message.starts_with(&format!(
                "Operation cannot be fulfilled on {kind} \"bound\": the UID in the bound object reference (another)"
            )),
            "{message}"
        );
        let own = format!("{path}/bound");
        server
            .delete(&own, &json!({"gracePeriodSeconds": 0}))
            .await
            .ok();
        // A list waits until the cache knows.
        server.get(path).await.ok();
        let status = review(&server, &bound, Value::Null).await;
        assert_ne!(status["authenticated"], true, "{kind} is gone");
        ask(
            &server,
            json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": "bound"}}),
        )
        .await
        .refused(404);
    }
    let refused = ask(
        &server,
        json!({"boundObjectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}),
    )
    .await
    .refused(400);
    assert_eq!(
        refused["message"],
        "cannot bind token to object of type apps/v1, Kind=Deployment"
    );

    // An account that was made anew under the same name is another one.
    let plain = token(&server, json!({})).await;
    server.delete(ACCOUNT, &Value::Null).await.ok();
    let server = server.with_default_account().await;
    server
        .get("/api/v1/namespaces/default/serviceaccounts")
        .await
        .ok();
    let status = review(&server, &plain, Value::Null).await;
    assert_ne!(status["authenticated"], true);
}

#[tokio::test]
async fn a_request_says_nothing_else_than_its_path() {
    let server = Server::start().await.with_default_account().await;
    for (request, code, expected) in [
        (
            json!({"metadata": {"name": "other"}}),
            422,
            "TokenRequest.authentication.k8s.io \"default\" is invalid: metadata.name: Invalid value: \"other\": must match the \
             service account name if specified",
        ),
        (
            json!({"spec": {"expirationSeconds": 599}}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a \
             duration less than 10 minutes",
        ),
        (
            json!({"spec": {"expirationSeconds": (1_i64 << 32) + 1}}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 4294967297: may not \
             specify a duration larger than 2^32 seconds",
        ),
    ] {
        let refused = server
            .post(&format!("{ACCOUNT}/token"), &request)
            .await
            .refused(code);
        assert_eq!(refused["message"], expected);
    }
    let stale = json!({"metadata": {"uid": "another"}});
    server
        .post(&format!("{ACCOUNT}/token"), &stale)
        .await
        .refused(409);
}

#[tokio::test]
async fn lifetimes_are_those_that_the_server_was_started_with() {
    let lifetimes = Lifetimes {
        most_seconds: Some(7200),
        extend: true,
    };
    let setup = Setup {
        lifetimes,
        ..Setup::default()
    };
    let server = Server::start_as(setup).await.with_default_account().await;
    let answer = ask(&server, json!({"expirationSeconds": 100_000})).await;
    let warning = answer.headers["warning"].to_str().unwrap();
    assert!(
        warning.contains("requested expiration of 100000 seconds shortened to 7200 seconds"),
        "{warning}"
    );
    let answer = answer.ok();
    assert_eq!(answer["spec"]["expirationSeconds"], 7200);
    let life = |token: &str| {
        let claims = claims(token);
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
    };
    assert_eq!(life(answer["status"]["token"].as_str().unwrap()), 7200);

    // What kubelets ask for is good for a year, so that programs which never read it again go on.
    server.post(PODS, &pod("p")).await.ok();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "name": "p"});
    let asked = json!({"expirationSeconds": 3607, "boundObjectRef": pod});
    let extended = token(&server, asked.clone()).await;
    assert_eq!(life(&extended), 365 * 24 * 3600);
    let claims = claims(&extended);
    let told = claims["kubernetes.io"]["warnafter"].as_i64().unwrap();
    assert_eq!(told - claims["iat"].as_i64().unwrap(), 3607);
    let mut elsewhere = asked;
    elsewhere["audiences"] = json!(["vault"]);
    assert_eq!(life(&token(&server, elsewhere).await), 3607);
}

#[tokio::test]
async fn further_issuers_are_audiences_too() {
    let setup = Setup {
        issuers: vec!["https://former.test".to_owned()],
        ..Setup::default()
    };
    let server = Server::start_as(setup).await.with_default_account().await;
    let plain = token(&server, json!({})).await;
    let claims = claims(&plain);
    assert_eq!(claims["iss"], ISSUER);
    assert_eq!(claims["aud"], json!([ISSUER, "https://former.test"]));
    let status = review(&server, &plain, json!(["https://former.test"])).await;
    assert_eq!(status["audiences"], json!(["https://former.test"]));
    let document = server.get("/.well-known/openid-configuration").await.ok();
    assert_eq!(document["issuer"], ISSUER);
}
