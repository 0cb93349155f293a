//! What somebody who looks at a part finds: how bad it is, why, and what to do. Found by `queue`,
//! `store` and the `doctor` command, which prints it.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know; nothing has to be done.
    Note,
    /// It works, and will not under load, after a failure or against an attacker.
    Warning,
    /// It does not work, or loses what it must not.
    Error,
}

impl Severity {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at. No secret stands in it.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at; the same word each time.
    pub check: &'static str,
    /// What there is, and why that matters.
    pub reason: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, reason: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, check, reason: reason.into(), remedy: None }
    }

    /// Good to know.
    pub fn note(check: &'static str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::with(Severity::Note, check, reason, remedy)
    }

    /// Works for the moment.
    pub fn warning(
        check: &'static str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::with(Severity::Warning, check, reason, remedy)
    }

    /// Does not work.
    pub fn error(
        check: &'static str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::with(Severity::Error, check, reason, remedy)
    }

    /// With a severity of its own.
    pub fn with(
        severity: Severity,
        check: &'static str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity, check, reason: reason.into(), remedy: Some(remedy.into()) }
    }
}
