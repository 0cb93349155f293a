//! The names of the five contracts, as used in messages, settings and stored users. Their behaviour is
//! in the module `contract`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContractId {
    /// `POST /signup`, users identified by user name.
    Username,
    /// `POST /users/register` with a nested `fullname`.
    NestedName,
    /// `POST /users/register` with flat `firstname` and `lastname`.
    FlatName,
    /// `POST /register`.
    Register,
    /// `POST /<uri>/auth/signup` with error codes.
    ErrorCode,
}

impl ContractId {
    /// Every contract, in the order of the published documents.
    pub const ALL: [Self; 5] =
        [Self::Username, Self::NestedName, Self::FlatName, Self::Register, Self::ErrorCode];

    /// Returns the name used in messages, settings and stored users.
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

/// The name of no contract.
#[derive(Debug, thiserror::Error)]
#[error("unknown contract; expected username, nested-name, flat-name, register or error-code")]
pub struct UnknownContract;
