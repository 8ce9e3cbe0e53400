//! ServiceAccounts, their tokens, roles and bootstrap tokens.

use k8s_openapi::api::{
    core::v1::{Secret, ServiceAccount},
    rbac::v1::ClusterRole,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use crate::world::{World, eventually, from, until};

#[tokio::test]
async fn a_token_secret_is_filled_in_and_goes_with_its_account() {
    let world = World::start(0).await;
    let account = world
        .create::<ServiceAccount>(json!({"metadata": {"name": "robot"}}))
        .await;
    let secret = json!({"metadata": {"name": "robot-token",
        "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token"});
    world.create::<Secret>(secret).await;
    let filled = world
        .until::<Secret>("robot-token", |secret| {
            let data = secret.data.as_ref();
            data.is_some_and(|data| data.contains_key("token"))
        })
        .await;
    assert_eq!(
        filled.annotations()["kubernetes.io/service-account.uid"],
        account.uid().unwrap()
    );
    assert_eq!(filled.data.unwrap()["namespace"].0, b"default");

    world
        .delete::<ServiceAccount>("robot", DeleteParams::default())
        .await;
    world.gone::<Secret>("robot-token").await;
}

#[tokio::test]
async fn an_aggregated_role_has_the_rules_of_those_it_selects() {
    let world = World::start(0).await;
    let roles: Api<ClusterRole> = Api::all(world.client.clone());
    let create = async |role| {
        roles
            .create(&PostParams::default(), &from(role))
            .await
            .unwrap()
    };
    create(
        json!({"metadata": {"name": "monitoring"}, "rules": [], "aggregationRule": {
        "clusterRoleSelectors": [{"matchLabels": {"to-monitoring": "true"}}]}}),
    )
    .await;
    create(
        json!({"metadata": {"name": "part", "labels": {"to-monitoring": "true"}}, "rules": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
    )
    .await;
    until(&roles, "monitoring", |role| {
        role.rules.as_ref().is_some_and(|rules| rules.len() == 1)
    })
    .await;
    roles
        .delete("part", &DeleteParams::default())
        .await
        .unwrap();
    until(&roles, "monitoring", |role| {
        role.rules.as_ref().is_none_or(Vec::is_empty)
    })
    .await;
}

#[tokio::test]
async fn an_expired_bootstrap_token_is_removed() {
    let world = World::start(0).await;
    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), "kube-system");
    let token = |id: &str, expiration: String| {
        from::<Secret>(
            json!({"metadata": {"name": format!("bootstrap-token-{id}")},
            "type": "bootstrap.kubernetes.io/token", "stringData": {"token-id": id,
                "token-secret": "0123456789abcdef", "expiration": expiration}}),
        )
    };
    let now = jiff::Timestamp::now();
    let soon = (now + jiff::SignedDuration::from_secs(1)).strftime("%Y-%m-%dT%H:%M:%SZ");
    let late = (now + jiff::SignedDuration::from_hours(1)).strftime("%Y-%m-%dT%H:%M:%SZ");
    for (id, expiration) in [("abcdef", soon.to_string()), ("uvwxyz", late.to_string())] {
        secrets
            .create(&PostParams::default(), &token(id, expiration))
            .await
            .unwrap();
    }
    eventually("expired token gone", async || {
        secrets
            .get_opt("bootstrap-token-abcdef")
            .await
            .unwrap()
            .is_none()
    })
    .await;
    assert!(
        secrets
            .get_opt("bootstrap-token-uvwxyz")
            .await
            .unwrap()
            .is_some()
    );
}
