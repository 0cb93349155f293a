//! A store in memory that loses writes and responses, and shows writes late. Its unique indexes are exact, as those of
//! MongoDB and redb are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use muster::domain::{RegistrationId, StoredUser, User, UserId};
use muster::store::{Conflicts, InsertOutcome, PrepareError, Store, StoreError};
use tokio::time::Instant;

use super::world::Process;

/// How long a write that is visible late stays invisible at most, in milliseconds. Shorter than the time for which a
/// worker looks for the user that a unique index refused.
const INVISIBLE_MS: u64 = 400;

struct Row {
    user: StoredUser,
    visible_at: Instant,
}

/// The users, shared by all workers.
#[derive(Default)]
pub(super) struct Users(Mutex<Vec<Row>>);

impl Users {
    fn rows(&self) -> MutexGuard<'_, Vec<Row>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was stored, in order.
    pub(super) fn all(&self) -> Vec<StoredUser> {
        self.rows().iter().map(|row| row.user.clone()).collect()
    }

    fn find(&self, matches: impl Fn(&StoredUser) -> bool) -> Option<StoredUser> {
        let rows = self.rows();
        let visible = rows.iter().filter(|row| row.visible_at <= Instant::now());
        visible.map(|row| &row.user).find(|user| matches(user)).cloned()
    }

    fn insert(&self, user: StoredUser, invisible: Duration) -> InsertOutcome {
        let mut rows = self.rows();
        let conflicts = |row: &Row| {
            let (a, b) = (&row.user, &user);
            a.registration_id == b.registration_id
                || (a.email_key.is_some() && a.email_key == b.email_key)
                || (a.user.username.is_some() && a.user.username == b.user.username)
        };
        if rows.iter().any(conflicts) {
            return InsertOutcome::Conflict;
        }
        rows.push(Row { user, visible_at: Instant::now() + invisible });
        InsertOutcome::Inserted
    }
}

/// A worker's connection to the store.
pub(super) struct SimStore {
    pub(super) users: Arc<Users>,
    pub(super) process: Arc<Process>,
}

impl SimStore {
    async fn read<T>(&self, read: impl FnOnce(&Users) -> T) -> Result<T, StoreError> {
        self.process.step().await;
        if self.process.world.strikes(|faults| faults.read_fails) {
            return Err(StoreError);
        }
        let result = read(&self.users);
        self.process.step().await;
        Ok(result)
    }
}

#[async_trait]
impl Store for SimStore {
    async fn prepare(&self) -> Result<(), PrepareError> {
        Ok(())
    }

    async fn insert(&self, user: StoredUser) -> Result<InsertOutcome, StoreError> {
        let world = &self.process.world;
        self.process.step().await;
        if world.strikes(|faults| faults.write_lost) {
            self.process.step().await;
            return Err(StoreError);
        }
        let late = world.strikes(|faults| faults.visible_late);
        let invisible = if late { world.rng().u64(0..INVISIBLE_MS) } else { 0 };
        let outcome = self.users.insert(user, Duration::from_millis(invisible));
        // A write is acknowledged once it is visible to every read.
        if outcome == InsertOutcome::Inserted {
            tokio::time::sleep(Duration::from_millis(invisible)).await;
        }
        self.process.step().await;
        match world.strikes(|faults| faults.response_lost) {
            true => Err(StoreError),
            false => Ok(outcome),
        }
    }

    async fn find_by_registration(
        &self,
        id: &RegistrationId,
    ) -> Result<Option<StoredUser>, StoreError> {
        self.read(|users| users.find(|user| user.registration_id == *id)).await
    }

    async fn find_conflicts(
        &self,
        username: Option<&str>,
        email_key: Option<&str>,
    ) -> Result<Conflicts, StoreError> {
        self.read(|users| Conflicts {
            username: username
                .and_then(|name| users.find(|user| user.user.username.as_deref() == Some(name))),
            email: email_key
                .and_then(|key| users.find(|user| user.email_key.as_deref() == Some(key))),
        })
        .await
    }

    async fn find_user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.read(|users| users.find(|user| user.user.id == id).map(|user| user.user)).await
    }
}
