//! The data of the sign-up page, `/pages/mounts.json`: the mounts, their contracts and the fields of each.

use serde_json::{Value, json};

use crate::config::Mount;
use crate::contract::contract;

/// One entry for each contract of each mount, with the JSON Schema of its document.
pub(super) fn list(mounts: &[Mount]) -> Value {
    let entries = mounts.iter().flat_map(|mount| {
        mount.contracts.iter().map(|id| {
            json!({
                "contract": id,
                // The path of a mount at the root is empty.
                "path": if mount.path.is_empty() { "/" } else { &mount.path },
                "anyPrefix": mount.any_prefix,
                "document": contract(*id).schema(),
            })
        })
    });
    entries.collect()
}
