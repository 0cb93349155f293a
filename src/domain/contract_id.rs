//! The name of one of the five documented endpoints, as it travels in a message and stands in a
//! stored user. What a contract *does* is in `contract`; this is only what it is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One documented registration endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContractId {
    /// `POST /signup`, known by user name.
    Username,
    /// `POST /users/register` with a nested `fullname`.
    NestedName,
    /// `POST /users/register` with flat `firstname` and `lastname`.
    FlatName,
    /// `POST /register`.
    Register,
    /// `POST /<uri>/auth/signup`, answers with error codes.
    ErrorCode,
}

impl ContractId {
    /// Every contract, in the order of the published documents.
    pub const ALL: [Self; 5] =
        [Self::Username, Self::NestedName, Self::FlatName, Self::Register, Self::ErrorCode];

    /// The name used in messages, settings and stored users.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Username => "username",
            Self::NestedName => "nested-name",
            Self::FlatName => "flat-name",
            Self::Register => "register",
            Self::ErrorCode => "error-code",
        }
    }
}

impl fmt::Display for ContractId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ContractId {
    type Err = UnknownContract;

    fn from_str(name: &str) -> Result<Self, UnknownContract> {
        Self::ALL.into_iter().find(|id| id.as_str() == name).ok_or(UnknownContract)
    }
}

/// A name that is none of the five.
#[derive(Debug, thiserror::Error)]
#[error("no such contract; known are username, nested-name, flat-name, register, error-code")]
pub struct UnknownContract;
