//! Whose token is it? The front holds no key, so it asks here.

use super::Worker;
use crate::queue::seal::OpenError;
use crate::queue::{Message, DeadLetterReason};
use crate::domain::{FailureCode, Outcome, RejectionCode};

impl Worker {
    /// Verifies the token in the body and reads its user.
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
