//! The unique indexes: made if they are missing, then looked at, because without them two users
//! could share a name and nobody would notice.

use bson::{Document as Keys, doc};
use futures_util::TryStreamExt;
use mongodb::options::IndexOptions;
use mongodb::{Collection, IndexModel};

use crate::store::document::Document;

/// Fields under which a user is unique. The first two cover only users who have them.
pub(super) const UNIQUE: [(&str, bool); 3] =
    [("username", true), ("emailKey", true), ("registrationId", false)];

/// Why the collection cannot be used.
pub(super) enum Unusable {
    Driver(mongodb::error::Error),
    Index(String),
}

impl From<mongodb::error::Error> for Unusable {
    fn from(error: mongodb::error::Error) -> Self {
        Self::Driver(error)
    }
}

/// Makes the indexes and checks that the server really has them as unique.
pub(super) async fn ensure(users: &Collection<Document>) -> Result<(), Unusable> {
    for (field, optional) in UNIQUE {
        let only_present = optional.then(|| doc! { field: { "$exists": true } });
        let options =
            IndexOptions::builder().unique(true).partial_filter_expression(only_present).build();
        users
            .create_index(IndexModel::builder().keys(keys(field)).options(options).build())
            .await?;
    }
    let found: Vec<IndexModel> = users.list_indexes().await?.try_collect().await?;
    for (field, optional) in UNIQUE {
        if !found.iter().any(|index| guards(index, field, optional)) {
            return Err(Unusable::Index(format!(
                "MongoDB has no unique index on {field}, though it was just made; muster does not \
                 work without it"
            )));
        }
    }
    Ok(())
}

/// Whether an index is the one that keeps a field unique.
pub(super) fn guards(index: &IndexModel, field: &str, optional: bool) -> bool {
    let options = index.options.as_ref();
    let unique = options.and_then(|options| options.unique) == Some(true);
    let partial = options.is_some_and(|options| options.partial_filter_expression.is_some());
    index.keys == keys(field) && unique && partial == optional
}

pub(super) fn keys(field: &str) -> Keys {
    doc! { field: 1 }
}
