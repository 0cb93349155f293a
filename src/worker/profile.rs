//! The profile use case: verifies a token and returns its user. The front has no signing key, so it requests this
//! through the queue.

use super::Worker;
use crate::domain::{FailureCode, Outcome, RejectionCode};
use crate::queue::seal::OpenError;
use crate::queue::{DeadLetterReason, Message};

impl Worker {
    /// Verifies the token in the message's body and returns its user. Returns an error if the message has to be
    /// dead-lettered.
    pub(super) async fn profile(&self, message: &Message) -> Result<Outcome, DeadLetterReason> {
        let token = match self.opener.open_token(message, self.clock.now()) {
            Ok(token) => token,
            Err(OpenError::UnknownKey) => return Ok(FailureCode::UnknownKey.into()),
            Err(OpenError::Invalid(_) | OpenError::NotSealed) if message.sealed.is_some() => {
                return Err(DeadLetterReason::BadSeal);
            }
            Err(_) => return Err(DeadLetterReason::Unreadable),
        };
        let Ok(id) = self.signer.verify(&token) else {
            return Ok(RejectionCode::Unauthorized.into());
        };
        Ok(match self.store.find_user(id).await {
            Ok(Some(user)) => Outcome::Profile { user },
            Ok(None) => RejectionCode::Unauthorized.into(),
            Err(_) => FailureCode::StoreUnavailable.into(),
        })
    }
}
