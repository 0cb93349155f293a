//! Unique indexes of other programs on the collection of users: what each does to muster's users, and which
//! of them refused one. Which index a server names in its error differs between servers, so the index is
//! found by looking for the user that it already holds.

use bson::{Bson, Document as Fields, doc};
use futures_util::TryStreamExt;
use mongodb::error::Error;
use mongodb::{Collection, IndexModel};

use super::indexes::UNIQUE;
use crate::domain::StoredUser;
use crate::store::ForeignIndex;
use crate::store::document::UserDocument;

/// Fields that muster writes with values that may differ between users; it writes `socketId` too, always
/// null, and no others.
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
/// Fields of which no two users have the same value.
const DISTINCT: [&str; 2] = ["_id", "registrationId"];
/// Fields by which a user is known: who has an equal one is a duplicate.
const NAMES: [&str; 3] = ["username", "email", "emailKey"];

/// What an index does to muster's users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It never refuses one.
    None,
    /// To it they are all equal: it admits one.
    OneUser,
    /// It refuses a user who is equal to another in these fields; absent ones are equal.
    Equal(Vec<String>),
}

/// The unique indexes of a collection.
pub(super) async fn list(users: &Collection<UserDocument>) -> Result<Vec<IndexModel>, Error> {
    let found: Vec<IndexModel> = users.list_indexes().await?.try_collect().await?;
    Ok(found.into_iter().filter(is_unique).collect())
}

fn is_unique(index: &IndexModel) -> bool {
    index.options.as_ref().and_then(|options| options.unique) == Some(true)
}

/// Whether another program made a unique index.
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

/// Whether users of muster can be in an index at all.
fn covers(index: &IndexModel) -> bool {
    let is_present = |field: &str| field == "socketId" || WRITTEN.contains(&field);
    let options = index.options.as_ref();
    let sparse = options.and_then(|options| options.sparse) == Some(true);
    if sparse && !index.keys.keys().any(|field| is_present(field)) {
        return false;
    }
    let filter = options.and_then(|options| options.partial_filter_expression.as_ref());
    // Every condition but "equal to null" takes a field that is there.
    !filter.is_some_and(|filter| {
        filter.iter().any(|(field, condition)| {
            !field.starts_with('$') && !is_present(field) && *condition != Bson::Null
        })
    })
}

/// What an index does, and what to do about it; nothing where it does nothing.
pub(super) fn consequence(index: &IndexModel) -> Option<(String, String)> {
    let (name, keys) = (name(index), fields_of(index).join(", "));
    let found = format!("the unique index {name} on {keys} is not muster's");
    let drop = format!("drop it: db.users.dropIndex(\"{name}\")");
    match effect(index) {
        Effect::None => None,
        Effect::OneUser => Some((
            format!(
                "{found}: muster writes none of its fields, so it admits one user and refuses all others"
            ),
            format!(
                "{drop}; or make it partial: partialFilterExpression: {{\"{}\": {{$exists: true}}}}",
                fields_of(index).first().copied().unwrap_or_default()
            ),
        )),
        Effect::Equal(fields) => {
            let equal = fields.join(" and ");
            let answer = if fields.iter().all(|field| NAMES.contains(&field.as_str())) {
                format!(
                    "a user with the {equal} of another document is answered as a duplicate, and of \
                     users without one only the first is registered"
                )
            } else {
                format!(
                    "a user with the {equal} of another document is answered 500, and is not registered"
                )
            };
            Some((format!("{found}: {answer}"), drop))
        }
    }
}

/// The index that refuses a user without a user of muster in it, and whether what it covers is what the
/// user is known by.
pub(super) async fn refusing(
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
        // This very registration may have been written by another delivery.
        let mut other = doc! { "registrationId": { "$ne": record.registration_id.as_str() } };
        if !is_foreign(&index) {
            // A user of muster in its own index is found by its name, or is not visible yet.
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

/// The field by which a user is known, if nothing else that muster writes is in the index.
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
    fn the_effect_of_an_index_follows_from_what_muster_writes() {
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
    fn what_to_do_is_said_with_the_index() {
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
