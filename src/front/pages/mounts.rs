//! What the sign-up page offers: where which contract is mounted, and its fields.

use serde_json::{Value, json};

use crate::config::Mount;
use crate::contract::contract;

/// Every mount with each of its contracts, whose documents are told as JSON Schemas.
pub(super) fn listed(mounts: &[Mount]) -> Value {
    let listed = mounts.iter().flat_map(|mount| {
        mount.contracts.iter().map(|id| {
            json!({
                "contract": id,
                // The mount at the root has no path of its own.
                "path": if mount.path.is_empty() { "/" } else { &mount.path },
                "anyPrefix": mount.any_prefix,
                "document": contract(*id).schema(),
            })
        })
    });
    listed.collect()
}
