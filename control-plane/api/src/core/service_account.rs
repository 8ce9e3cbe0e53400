//! ServiceAccounts.

use serde_json::Value;

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::Tree;

pub struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![object.list("secrets").len(), age(object, now)]
    }
}
