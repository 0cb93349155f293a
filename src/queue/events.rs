//! Events about outcomes, for subscribers on the broker. The local queue publishes none.
//!
//! Subscribers are unknown systems that may keep events for any time. Events therefore contain no password, hash or
//! token, and no personal data: an authorized system can read the user from the store by id. The texts of violated
//! rules are left out, because one of them repeats the address.

use serde::Serialize;

use super::{Message, MessageKind, QueueKind};
use crate::config;
use crate::domain::{
    ContractId, FieldError, Millis, Outcome, RegistrationId, Rejection, RejectionCode, User, UserId,
};

/// The names of all events. The name is also the routing key.
pub const NAMES: [&str; 2] = [USER_REGISTERED, REGISTRATION_REJECTED];
/// A user was registered.
pub const USER_REGISTERED: &str = "user.registered";
/// A bulk registration without `reply_to` was rejected.
pub const REGISTRATION_REJECTED: &str = "registration.rejected";

/// An event. It may be published more than once; name and registration id together identify it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// See [`USER_REGISTERED`].
    UserRegistered(UserRegistered),
    /// See [`REGISTRATION_REJECTED`].
    RegistrationRejected(RegistrationRejected),
}

/// A user was registered. A repeated event is identical.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserRegistered {
    /// The registration.
    #[serde(flatten)]
    pub registration: EventRegistration,
    /// The new user.
    pub user_id: UserId,
    /// When the user was registered, in milliseconds since 1970.
    pub registered_at: Millis,
}

/// A bulk registration without `reply_to` was rejected. The same registration again is rejected again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationRejected {
    /// The registration.
    #[serde(flatten)]
    pub registration: EventRegistration,
    /// The reason of the rejection.
    pub code: RejectionCode,
    /// Violated rules, in the contract's order and spelling.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ViolatedRule>,
    /// When it was rejected, in milliseconds since 1970. A repeated event has another time.
    pub rejected_at: Millis,
}

/// The registration that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRegistration {
    /// Digest of entry point, contract, producer and message id. Messages with the same digest are one registration.
    pub registration_id: RegistrationId,
    /// The `message_id` of the message.
    pub message_id: String,
    /// The account that published it; empty if the message has no `user_id`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub producer: String,
    /// The contract of its document.
    pub contract: ContractId,
}

/// A field and the code of the rule that it violates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ViolatedRule {
    /// The field as the contract spells it; empty if the rule is about several fields.
    pub field: String,
    /// A stable code, such as `INVALID_LENGTH`.
    pub code: String,
}

impl Event {
    /// The event for this outcome of a message; `None` if there is none or if the setting `queue.events` excludes it.
    pub fn for_outcome(
        message: &Message,
        outcome: &Outcome,
        events: config::EventScope,
        now: Millis,
    ) -> Option<Self> {
        let MessageKind::Register(contract) = message.kind else { return None };
        let is_selected = match events {
            config::EventScope::All => true,
            config::EventScope::Bulk => message.queue == QueueKind::Bulk,
            config::EventScope::None => false,
        };
        let has_reply =
            message.queue != QueueKind::Bulk || message.reply_address.reply_to.is_some();
        match outcome {
            Outcome::Registered { user, by_other_registration: false, .. } if is_selected => {
                Some(Self::UserRegistered(UserRegistered::new(message, contract, user)))
            }
            Outcome::Rejected(rejection) if is_selected && !has_reply => {
                let event = RegistrationRejected::new(message, contract, rejection, now);
                Some(Self::RegistrationRejected(event))
            }
            _ => None,
        }
    }

    /// The name, which is also the routing key.
    pub fn name(&self) -> &'static str {
        match self {
            Self::UserRegistered(_) => USER_REGISTERED,
            Self::RegistrationRejected(_) => REGISTRATION_REJECTED,
        }
    }

    /// The id of its registration.
    pub fn id(&self) -> &RegistrationId {
        match self {
            Self::UserRegistered(event) => &event.registration.registration_id,
            Self::RegistrationRejected(event) => &event.registration.registration_id,
        }
    }
}

impl UserRegistered {
    fn new(message: &Message, contract: ContractId, user: &User) -> Self {
        Self {
            registration: EventRegistration::from_message(message, contract),
            user_id: user.id,
            registered_at: user.created_at,
        }
    }
}

impl RegistrationRejected {
    fn new(message: &Message, contract: ContractId, rejection: &Rejection, now: Millis) -> Self {
        let violated = |error: &FieldError| ViolatedRule {
            field: error.field.to_string(),
            code: error.code.to_string(),
        };
        Self {
            registration: EventRegistration::from_message(message, contract),
            code: rejection.code,
            errors: rejection.errors.iter().map(violated).collect(),
            rejected_at: now,
        }
    }
}

impl EventRegistration {
    fn from_message(message: &Message, contract: ContractId) -> Self {
        Self {
            registration_id: RegistrationId::derive(&message.origin, contract, &message.id),
            message_id: message.id.as_str().to_owned(),
            producer: message.origin.producer().to_owned(),
            contract,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::domain::{FailureCode, MessageId, Origin};
    use crate::queue::ReplyAddress;
    use crate::telemetry::TraceContext;

    fn crm() -> Origin {
        Origin::Amqp { producer: "crm".to_owned() }
    }

    fn message(queue: QueueKind, reply_to: Option<&str>) -> Message {
        Message {
            queue,
            kind: MessageKind::Register(ContractId::ErrorCode),
            id: MessageId::parse("row-1").unwrap(),
            origin: crm(),
            new_key: false,
            sealed: None,
            body: Bytes::from_static(br#"{"email":"ann@","password":"hunter2"}"#),
            expires: None,
            expiration: None,
            deliveries: 0,
            attempt: 0,
            trace: TraceContext::default(),
            reply_address: ReplyAddress {
                reply_to: reply_to.map(str::to_owned),
                correlation_id: None,
            },
        }
    }

    fn registered() -> Outcome {
        let user = User {
            id: UserId::parse("0123456789abcdef01234567").unwrap(),
            contract: ContractId::ErrorCode,
            username: Some("ann".into()),
            email: Some("ann@example.com".into()),
            fullname: None,
            created_at: Millis(5),
            updated_at: Millis(6),
        };
        let token = Some("a.b.c".into());
        Outcome::Registered { user, token, replayed: true, by_other_registration: false }
    }

    fn rejected() -> Outcome {
        let error = FieldError {
            field: "email".into(),
            code: "INVALID_EMAIL_FORMAT".into(),
            message: "Invalid email format: ann@".into(),
        };
        Outcome::Rejected(Rejection { code: RejectionCode::Invalid, errors: vec![error] })
    }

    fn names(
        queue: QueueKind,
        reply_to: Option<&str>,
        outcome: &Outcome,
    ) -> [Option<&'static str>; 3] {
        [config::EventScope::All, config::EventScope::Bulk, config::EventScope::None].map(
            |events| {
                let event =
                    Event::for_outcome(&message(queue, reply_to), outcome, events, Millis(7));
                event.map(|event| event.name())
            },
        )
    }

    #[test]
    fn event_depends_on_outcome_queue_reply_and_setting() {
        let (user, none) = (Some(USER_REGISTERED), [None; 3]);
        assert_eq!(names(QueueKind::Interactive, Some("r"), &registered()), [user, None, None]);
        assert_eq!(names(QueueKind::Bulk, Some("r"), &registered()), [user, user, None]);
        assert_eq!(names(QueueKind::Bulk, None, &registered()), [user, user, None]);
        let refused = Some(REGISTRATION_REJECTED);
        assert_eq!(names(QueueKind::Bulk, None, &rejected()), [refused, refused, None]);
        assert_eq!(
            names(QueueKind::Bulk, Some("r"), &rejected()),
            none,
            "the producer gets a reply"
        );
        assert_eq!(
            names(QueueKind::Interactive, Some("r"), &rejected()),
            none,
            "the producer gets a reply"
        );
        assert_eq!(names(QueueKind::Bulk, None, &FailureCode::Internal.into()), none, "a failure");
        let mut recognised = registered();
        if let Outcome::Registered { by_other_registration, .. } = &mut recognised {
            *by_other_registration = true;
        }
        assert_eq!(names(QueueKind::Interactive, Some("r"), &recognised), none, "published before");
    }

    #[test]
    fn events_contain_no_personal_data() {
        let event = |outcome| {
            let message = message(QueueKind::Bulk, None);
            let event =
                Event::for_outcome(&message, &outcome, config::EventScope::All, Millis(7)).unwrap();
            serde_json::to_value(&event).unwrap()
        };
        let id = RegistrationId::derive(
            &crm(),
            ContractId::ErrorCode,
            &MessageId::parse("row-1").unwrap(),
        );
        let registration = json!({
            "registrationId": id, "messageId": "row-1", "producer": "crm", "contract": "error-code",
        });
        let with = |more: serde_json::Value| {
            let mut all = registration.clone();
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let user = json!({ "userId": "0123456789abcdef01234567", "registeredAt": 5 });
        assert_eq!(event(registered()), with(user));
        let errors = json!([{ "field": "email", "code": "INVALID_EMAIL_FORMAT" }]);
        let refused = json!({ "code": "invalid", "errors": errors, "rejectedAt": 7 });
        assert_eq!(event(rejected()), with(refused));
    }
}
