//! Unique indexes of other programs on the collection of users: their effect on registrations, and the one that
//! rejected a user.
//!
//! Servers differ in how they name an index in their error. So the index is found by querying for the document
//! that already has the same values.

use bson::{Bson, Document as Fields, doc};
use futures_util::TryStreamExt;
use mongodb::error::Error;
use mongodb::{Collection, IndexModel};

use super::indexes::UNIQUE;
use crate::domain::StoredUser;
use crate::store::ForeignIndex;
use crate::store::document::UserDocument;

/// Fields that muster writes with values that may differ between users. The only other one is `socketId`, always
/// null.
const WRITTEN: [&str; 13] = [
    "_id",
    "contract",
    "username",
    "email",
    "emailKey",
    "emailKeyVersion",
    "fullname",
    "fullname.firstname",
    "fullname.lastname",
    "password",
    "createdAt",
    "updatedAt",
    "fingerprint",
];
/// Fields in which no two users have the same value.
const DISTINCT: [&str; 2] = ["_id", "registrationId"];
/// Fields that identify a user: a user with the same value is a duplicate.
const NAMES: [&str; 3] = ["username", "email", "emailKey"];

/// The effect of an index on muster's users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It never rejects a user.
    None,
    /// All users are equal in its fields, so it admits one.
    OneUser,
    /// It rejects a user who is equal to another in these fields; two absent values are equal.
    Equal(Vec<String>),
}

/// Lists the unique indexes of a collection.
pub(super) async fn list(users: &Collection<UserDocument>) -> Result<Vec<IndexModel>, Error> {
    let found: Vec<IndexModel> = users.list_indexes().await?.try_collect().await?;
    Ok(found.into_iter().filter(is_unique).collect())
}

fn is_unique(index: &IndexModel) -> bool {
    index.options.as_ref().and_then(|options| options.unique) == Some(true)
}

/// Whether an index is unique and was created by another program.
pub(super) fn is_foreign(index: &IndexModel) -> bool {
    let own = |(field, optional)| super::indexes::guards(index, field, optional);
    is_unique(index) && !UNIQUE.into_iter().any(own)
}

pub(super) fn effect(index: &IndexModel) -> Effect {
    let fields = || index.keys.keys().map(String::as_str);
    if fields().any(|field| DISTINCT.contains(&field)) || !covers(index) {
        return Effect::None;
    }
    let written: Vec<String> =
        fields().filter(|field| WRITTEN.contains(field)).map(str::to_owned).collect();
    if written.is_empty() { Effect::OneUser } else { Effect::Equal(written) }
}

/// Whether an index can contain users that muster writes.
fn covers(index: &IndexModel) -> bool {
    let is_present = |field: &str| field == "socketId" || WRITTEN.contains(&field);
    let options = index.options.as_ref();
    let sparse = options.and_then(|options| options.sparse) == Some(true);
    if sparse && !index.keys.keys().any(|field| is_present(field)) {
        return false;
    }
    let filter = options.and_then(|options| options.partial_filter_expression.as_ref());
    // Every condition except "equal to null" requires that the field exists.
    !filter.is_some_and(|filter| {
        filter.iter().any(|(field, condition)| {
            !field.starts_with('$') && !is_present(field) && *condition != Bson::Null
        })
    })
}

/// Describes the effect of an index and its remedy. `None` if it has no effect.
pub(super) fn consequence(index: &IndexModel) -> Option<(String, String)> {
    let (name, keys) = (name(index), fields_of(index).join(", "));
    let found = format!("the unique index {name} on {keys} is not muster's");
    let drop = format!("drop it: db.users.dropIndex(\"{name}\")");
    match effect(index) {
        Effect::None => None,
        Effect::OneUser => Some((
            format!(
                "{found}: muster writes none of its fields, so it admits one user and rejects all others"
            ),
            format!(
                "{drop}; or make it partial: partialFilterExpression: {{\"{}\": {{$exists: true}}}}",
                fields_of(index).first().copied().unwrap_or_default()
            ),
        )),
        Effect::Equal(fields) => {
            let equal = fields.join(" and ");
            let effect = if fields.iter().all(|field| NAMES.contains(&field.as_str())) {
                format!(
                    "it rejects a user with the {equal} of another document as a duplicate, and of \
                     users without {equal} it admits only the first"
                )
            } else {
                format!(
                    "it rejects a user with the {equal} of another document, and the response is 500"
                )
            };
            Some((format!("{found}: {effect}"), drop))
        }
    }
}

/// Returns the index that rejected a user because of another program's document, or that another program created.
pub(super) async fn find_conflict(
    users: &Collection<UserDocument>,
    record: &StoredUser,
) -> Result<Option<ForeignIndex>, Error> {
    let user = bson::serialize_to_document(&UserDocument::from(record.clone())).unwrap_or_default();
    let documents = users.clone_with_type::<Fields>();
    for index in list(users).await? {
        if effect(&index) == Effect::None {
            continue;
        }
        let equal = |field: &str| value_at(&user, field).cloned().unwrap_or(Bson::Null);
        let equal: Fields =
            fields_of(&index).into_iter().map(|field| (field.to_owned(), equal(field))).collect();
        let options = index.options.clone().unwrap_or_default();
        let partial = options.partial_filter_expression.unwrap_or_default();
        // Excludes this registration, which another delivery may have stored.
        let mut other = doc! { "registrationId": { "$ne": record.registration_id.as_str() } };
        if !is_foreign(&index) {
            // Excludes users that muster wrote: `find_conflicts` finds those in muster's own indexes.
            other.insert("fingerprint", doc! { "$exists": false });
        }
        let mut find = documents
            .find_one(doc! { "$and": [equal, partial, other] })
            .projection(doc! { "_id": 1 });
        if let Some(collation) = options.collation {
            find = find.collation(collation);
        }
        if find.await?.is_some() {
            let duplicate = duplicate(&index, &user);
            return Ok(Some(ForeignIndex { name: name(&index), duplicate }));
        }
    }
    Ok(None)
}

/// Returns the identifying field if it is the only one of muster's fields in the index.
fn duplicate(index: &IndexModel, user: &Fields) -> Option<&'static str> {
    let Effect::Equal(fields) = effect(index) else { return None };
    match fields.as_slice() {
        [field] if !user.contains_key(field) => None,
        [field] if field == "username" => Some("username"),
        [field] if field == "email" || field == "emailKey" => Some("email"),
        _ => None,
    }
}

fn value_at<'a>(user: &'a Fields, field: &str) -> Option<&'a Bson> {
    match field.split_once('.') {
        Some((outer, inner)) => user.get_document(outer).ok()?.get(inner),
        None => user.get(field),
    }
}

fn fields_of(index: &IndexModel) -> Vec<&str> {
    index.keys.keys().map(String::as_str).collect()
}

fn name(index: &IndexModel) -> String {
    let name = index.options.as_ref().and_then(|options| options.name.clone());
    name.unwrap_or_else(|| fields_of(index).join("_"))
}

#[cfg(test)]
mod tests {
    use mongodb::options::IndexOptions;

    use super::*;

    fn index(keys: Fields, options: Fields) -> IndexModel {
        let mut options: IndexOptions = bson::deserialize_from_document(options).unwrap();
        options.unique = Some(true);
        IndexModel::builder().keys(keys).options(options).build()
    }

    fn equal(fields: &[&str]) -> Effect {
        Effect::Equal(fields.iter().map(|field| (*field).to_owned()).collect())
    }

    #[test]
    fn effect_of_an_index_depends_on_the_fields_that_muster_writes() {
        for (keys, options, expected) in [
            (doc! { "phone": 1 }, doc! {}, Effect::OneUser),
            (doc! { "phone": 1, "tenant": 1 }, doc! {}, Effect::OneUser),
            (doc! { "socketId": 1 }, doc! { "sparse": true }, Effect::OneUser),
            (doc! { "phone": 1 }, doc! { "sparse": true }, Effect::None),
            (
                doc! { "phone": 1 },
                doc! { "partialFilterExpression": { "phone": { "$exists": true } } },
                Effect::None,
            ),
            (
                doc! { "phone": 1 },
                doc! { "partialFilterExpression": { "email": { "$exists": true } } },
                Effect::OneUser,
            ),
            (doc! { "phone": 1, "registrationId": 1 }, doc! {}, Effect::None),
            (doc! { "email": 1 }, doc! {}, equal(&["email"])),
            (doc! { "tenant": 1, "email": 1 }, doc! {}, equal(&["email"])),
            (doc! { "fullname.firstname": 1 }, doc! {}, equal(&["fullname.firstname"])),
            (doc! { "email.work": 1 }, doc! {}, Effect::OneUser),
        ] {
            assert_eq!(effect(&index(keys.clone(), options.clone())), expected, "{keys} {options}");
        }
    }

    #[test]
    fn own_indexes_are_not_foreign() {
        let partial = doc! { "partialFilterExpression": { "username": { "$exists": true } } };
        assert!(!is_foreign(&index(doc! { "username": 1 }, partial)));
        assert!(!is_foreign(&index(doc! { "registrationId": 1 }, doc! {})));
        assert!(is_foreign(&index(doc! { "email": 1 }, doc! {})));
        assert!(!is_foreign(&IndexModel::builder().keys(doc! { "phone": 1 }).build()));
    }

    #[test]
    fn consequence_names_the_index_and_a_remedy() {
        let (reason, remedy) =
            consequence(&index(doc! { "phone": 1 }, doc! { "name": "phone_1" })).unwrap();
        assert!(
            reason.contains("phone_1 on phone") && reason.contains("admits one user"),
            "{reason}"
        );
        assert!(remedy.contains("dropIndex(\"phone_1\")"), "{remedy}");
        let (reason, _) = consequence(&index(doc! { "email": 1 }, doc! {})).unwrap();
        assert!(reason.contains("as a duplicate"), "{reason}");
        let (reason, _) = consequence(&index(doc! { "fingerprint": 1 }, doc! {})).unwrap();
        assert!(reason.contains("500"), "{reason}");
        assert_eq!(consequence(&index(doc! { "phone": 1 }, doc! { "sparse": true })), None);
    }
}
