//! A store that responds as a test says, without an index, a file or a server.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use crate::signup::{Record, RegistrationId, User, UserId};
use crate::store::{ForeignIndex, Inserted, PrepareError, Store, StoreError, Taken};

/// What an insert does.
pub(super) enum Insert {
    /// It succeeds.
    Stores,
    /// A unique index refuses it.
    Conflicts,
    /// It fails. The user is stored nevertheless if the flag is set.
    Fails { is_stored: bool },
}

/// The state of the store.
pub(super) struct FakeStore {
    pub(super) insert: Insert,
    /// The user whom look-ups by registration id find, from this look-up on (counted from 0).
    pub(super) registered: Option<(Record, usize)>,
    /// Whether look-ups by registration id fail.
    pub(super) look_up_fails: bool,
    /// The holders of name and address.
    pub(super) taken: Taken,
    /// The index of another program that refuses.
    pub(super) foreign: Option<ForeignIndex>,
    inserted: Mutex<Option<Record>>,
    look_ups: AtomicUsize,
}

impl FakeStore {
    pub(super) fn new(insert: Insert) -> Self {
        Self {
            insert,
            registered: None,
            look_up_fails: false,
            taken: Taken::default(),
            foreign: None,
            inserted: Mutex::default(),
            look_ups: AtomicUsize::new(0),
        }
    }

    /// The record of the last insert, whether it was stored or not.
    pub(super) fn inserted(&self) -> Option<Record> {
        self.inserted.lock().unwrap().clone()
    }

    /// Look-ups by registration id so far.
    pub(super) fn look_ups(&self) -> usize {
        self.look_ups.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for FakeStore {
    async fn prepare(&self) -> Result<(), PrepareError> {
        Ok(())
    }

    async fn insert(&self, record: Record) -> Result<Inserted, StoreError> {
        *self.inserted.lock().unwrap() = Some(record);
        match self.insert {
            Insert::Stores => Ok(Inserted::Done),
            Insert::Conflicts => Ok(Inserted::Taken),
            Insert::Fails { .. } => Err(StoreError),
        }
    }

    async fn registered(&self, id: &RegistrationId) -> Result<Option<Record>, StoreError> {
        let look_up = self.look_ups.fetch_add(1, Ordering::Relaxed);
        if self.look_up_fails {
            return Err(StoreError);
        }
        if let Some((holder, from)) = &self.registered {
            assert_eq!(holder.registration_id, *id);
            return Ok((look_up >= *from).then(|| holder.clone()));
        }
        let is_stored = matches!(self.insert, Insert::Stores | Insert::Fails { is_stored: true });
        Ok(self.inserted().filter(|_| is_stored))
    }

    async fn taken(&self, _: Option<&str>, _: Option<&str>) -> Result<Taken, StoreError> {
        Ok(self.taken.clone())
    }

    async fn refused_by(&self, _: &Record) -> Result<Option<ForeignIndex>, StoreError> {
        Ok(self.foreign.clone())
    }

    async fn user(&self, _: UserId) -> Result<Option<User>, StoreError> {
        Ok(None)
    }
}
