//! `--map COLUMN=FIELD`: maps CSV columns and JSON fields to the fields of the contract.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// A column and the contract's field that it maps to. In JSON, a dotted column is a path into objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Name in the input.
    pub column: String,
    /// Name in the contract.
    pub field: String,
}

impl FromStr for Mapping {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.rsplit_once('=') {
            Some((column, field)) if !column.is_empty() && !field.is_empty() => {
                Ok(Self { column: column.to_owned(), field: field.to_owned() })
            }
            _ => Err("expected COLUMN=FIELD"),
        }
    }
}

type JsonObject = BTreeMap<String, Box<RawValue>>;

/// Returns a JSON row with its fields renamed. `None` if it is not an object. A mapped field is removed under its old
/// name, unless it is the id field.
pub(super) fn rename(mappings: &[Mapping], id_field: Option<&str>, row: &[u8]) -> Option<Vec<u8>> {
    let mut row: JsonObject = serde_json::from_slice(row).ok()?;
    let found: Vec<(&str, Box<RawValue>)> = mappings
        .iter()
        .filter_map(|mapping| Some((&*mapping.field, find(&row, &mapping.column)?)))
        .collect();
    row.retain(|key, _| Some(&**key) == id_field || mappings.iter().all(|one| one.column != *key));
    for (field, value) in found {
        match field.split_once('.') {
            None => drop(row.insert(field.to_owned(), value)),
            Some((object, field)) => {
                let existing = row.get(object).and_then(|raw| serde_json::from_str(raw.get()).ok());
                let mut inner: JsonObject = existing.unwrap_or_default();
                inner.insert(field.to_owned(), value);
                row.insert(object.to_owned(), to_raw_value(&inner).ok()?);
            }
        }
    }
    serde_json::to_vec(&row).ok()
}

/// Returns the value at a key, or at a dotted path of keys and array indexes.
fn find(row: &JsonObject, path: &str) -> Option<Box<RawValue>> {
    if let Some(value) = row.get(path) {
        return Some(value.clone());
    }
    let (first, rest) = path.split_once('.')?;
    let mut value = row.get(first)?.clone();
    for key in rest.split('.') {
        value = match key.parse::<usize>() {
            Ok(index) => {
                let items: Vec<Box<RawValue>> = serde_json::from_str(value.get()).ok()?;
                items.into_iter().nth(index)?
            }
            Err(_) => {
                let mut fields: JsonObject = serde_json::from_str(value.get()).ok()?;
                fields.remove(key)?
            }
        };
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(mappings: &[&str], row: &str) -> String {
        let mappings: Vec<Mapping> = mappings.iter().map(|text| text.parse().unwrap()).collect();
        let row = rename(&mappings, Some("nr"), row.as_bytes()).unwrap();
        String::from_utf8(row).unwrap()
    }

    #[test]
    fn fields_are_renamed_into_and_out_of_objects() {
        let row = r#"{"mail":"a@b.co","_id":{"$oid":"7"},"emails":[{"value":"c@b.co"}],"nr":1e2}"#;
        assert_eq!(
            renamed(&["mail=email", "_id.$oid=username", "nr=fullname.firstname"], row),
            r#"{"_id":{"$oid":"7"},"email":"a@b.co","emails":[{"value":"c@b.co"}],"fullname":{"firstname":1e2},"nr":1e2,"username":"7"}"#
        );
        assert!(renamed(&["emails.0.value=email"], row).contains(r#""email":"c@b.co""#));
        assert!(renamed(&["missing=email"], row).contains("mail"));
        let names = renamed(
            &["given=fullname.firstname", "family=fullname.lastname"],
            r#"{"given":"Ann","family":"Lee"}"#,
        );
        assert_eq!(names, r#"{"fullname":{"firstname":"Ann","lastname":"Lee"}}"#);
    }

    #[test]
    fn mapping_requires_column_and_field() {
        assert_eq!("a=b=email".parse::<Mapping>().unwrap().column, "a=b");
        for bad in ["email", "=email", "email="] {
            assert!(bad.parse::<Mapping>().is_err(), "{bad}");
        }
    }
}
