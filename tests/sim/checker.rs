//! Decides whether a history is possible: for each e-mail address and user name it searches an order of the attempts
//! in which a user is registered at most once and every response was true when it was given (Wing and Gong, "Testing
//! and verifying concurrent objects", 1993). Each key has a history of its own, so the search stays short.

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A response to an attempt, as far as it says something about the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// The user exists, with this id.
    Created { user: String },
    /// Another user has this field: `email` or `username`.
    Duplicate { field: &'static str },
    /// The idempotency key belongs to another request.
    KeyReused,
    /// The attempt had no effect and never will have one.
    NoEffect,
    /// No response, or one that leaves open what happened.
    Unknown,
}

/// One attempt to register.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    /// The registration, which retries share.
    pub(super) registration: String,
    /// The document, the password included.
    pub(super) document: String,
    pub(super) email: Option<String>,
    pub(super) username: Option<String>,
    /// Simulated time at which it began and ended, in microseconds. Without an end it may take effect at any time.
    pub(super) start: u64,
    pub(super) end: Option<u64>,
    pub(super) response: Response,
}

/// A user that the store has in the end.
#[derive(Clone, Debug)]
pub(super) struct FinalUser {
    pub(super) id: String,
    pub(super) registration: String,
    pub(super) email: Option<String>,
    pub(super) username: Option<String>,
}

/// Checks a history against the users in the store at its end.
///
/// # Errors
/// Returns the first contradiction, with the attempts that it concerns.
pub(super) fn check(attempts: &[Attempt], users: &[FinalUser]) -> Result<(), String> {
    registrations(attempts, users)?;
    let emails = |attempt: &Attempt| attempt.email.clone();
    let names = |attempt: &Attempt| attempt.username.clone();
    keys("email", attempts, emails, users, |user| user.email.clone())?;
    keys("username", attempts, names, users, |user| user.username.clone())
}

/// Every user has exactly one registration, which was attempted; every response of one registration names one user.
fn registrations(attempts: &[Attempt], users: &[FinalUser]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for user in users {
        let of_user: Vec<_> =
            attempts.iter().filter(|it| it.registration == user.registration).collect();
        if !seen.insert(&user.registration) {
            return Err(format!("two users of one registration: {user:?}"));
        }
        if of_user.iter().all(|attempt| attempt.response == Response::NoEffect) {
            return Err(format!(
                "a user that no attempt can have registered: {user:?}\n{of_user:#?}"
            ));
        }
    }
    for attempt in attempts {
        match &attempt.response {
            Response::Created { user } => {
                let stored = users.iter().find(|stored| stored.id == *user);
                let Some(stored) = stored else {
                    return Err(format!(
                        "a response names a user that is not stored: {attempt:#?}"
                    ));
                };
                if stored.registration != attempt.registration {
                    return Err(format!(
                        "a response names another registration's user: {attempt:#?}"
                    ));
                }
            }
            Response::KeyReused => {
                let other = attempts.iter().any(|other| {
                    other.registration == attempt.registration
                        && other.document != attempt.document
                        && other.response != Response::NoEffect
                        && attempt.end.is_none_or(|end| other.start <= end)
                });
                if !other {
                    return Err(format!("a key was called reused, and was not: {attempt:#?}"));
                }
            }
            Response::Duplicate { .. } | Response::NoEffect | Response::Unknown => {}
        }
    }
    Ok(())
}

/// Checks the history of each value of a unique field.
fn keys(
    field: &'static str,
    attempts: &[Attempt],
    key_of: impl Fn(&Attempt) -> Option<String>,
    users: &[FinalUser],
    key_of_user: impl Fn(&FinalUser) -> Option<String>,
) -> Result<(), String> {
    let mut histories: BTreeMap<String, Vec<&Attempt>> = BTreeMap::new();
    for attempt in attempts {
        if let Some(key) = key_of(attempt) {
            histories.entry(key).or_default().push(attempt);
        }
    }
    for user in users {
        if let Some(key) = key_of_user(user) {
            histories.entry(key).or_default();
        }
    }
    for (key, history) in histories {
        let holders: Vec<_> =
            users.iter().filter(|user| key_of_user(user).as_ref() == Some(&key)).collect();
        let holder = match holders[..] {
            [] => None,
            [holder] => Some(holder),
            _ => return Err(format!("{field} {key} has two users: {holders:#?}")),
        };
        let search = Search { field, history: &history, holder };
        if !search.is_possible() {
            return Err(format!(
                "{field} {key}: no order of these attempts explains their responses; at the end: {holder:?}\n\
                {history:#?}"
            ));
        }
    }
    Ok(())
}

/// The search for an order of one key's attempts.
struct Search<'a> {
    field: &'static str,
    history: &'a [&'a Attempt],
    holder: Option<&'a FinalUser>,
}

/// The key is free, or this attempt registered its user.
type KeyState = Option<usize>;

impl Search<'_> {
    fn is_possible(&self) -> bool {
        let mut visited = HashSet::new();
        self.search(0, None, &mut visited)
    }

    /// Whether the attempts that are not in `done` can follow a state. Attempts with an open end may be left out.
    fn search(&self, done: u128, state: KeyState, visited: &mut HashSet<(u128, KeyState)>) -> bool {
        if !visited.insert((done, state)) {
            return false;
        }
        let left: Vec<usize> = (0..self.history.len()).filter(|i| done & (1 << i) == 0).collect();
        if left.iter().all(|i| self.may_be_left_out(*i)) && self.is_final(state) {
            return true;
        }
        // Only an attempt that began before every other one ended can be the next.
        let first_end = left.iter().filter_map(|i| self.end(*i)).min().unwrap_or(u64::MAX);
        left.iter().filter(|i| self.history[**i].start <= first_end).any(|i| {
            let next = done | (1 << i);
            self.states_after(*i, state).into_iter().any(|state| self.search(next, state, visited))
        })
    }

    /// When an attempt has taken effect at the latest. After an unknown outcome its message may still be in the queue.
    fn end(&self, i: usize) -> Option<u64> {
        let attempt = self.history[i];
        attempt.end.filter(|_| attempt.response != Response::Unknown)
    }

    fn may_be_left_out(&self, i: usize) -> bool {
        matches!(self.history[i].response, Response::Unknown | Response::NoEffect)
    }

    /// Whether the store at the end has the state's user.
    fn is_final(&self, state: KeyState) -> bool {
        match (state, self.holder) {
            (None, None) => true,
            (Some(i), Some(holder)) => self.history[i].registration == holder.registration,
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// The states in which attempt `i` can leave the key. None: its response would be false.
    fn states_after(&self, i: usize, state: KeyState) -> Vec<KeyState> {
        let attempt = self.history[i];
        let is_own = |by: usize| {
            let by = self.history[by];
            by.registration == attempt.registration && by.document == attempt.document
        };
        match (&attempt.response, state) {
            (Response::Created { .. }, None) => vec![Some(i)],
            (Response::Created { .. }, Some(by)) if is_own(by) => vec![state],
            (Response::Created { .. }, Some(_)) => vec![],
            (Response::Duplicate { field }, None) if *field == self.field => vec![],
            (Response::Duplicate { field }, Some(by)) if *field == self.field && is_own(by) => {
                vec![]
            }
            (Response::Duplicate { .. }, _) => vec![state],
            (Response::KeyReused | Response::NoEffect, _) => vec![state],
            // It may have registered its user, or not.
            (Response::Unknown, None) => vec![None, Some(i)],
            (Response::Unknown, Some(_)) => vec![state],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(registration: &str, time: (u64, u64), response: Response) -> Attempt {
        Attempt {
            registration: registration.into(),
            document: format!("document of {registration}"),
            email: Some("a@example.com".into()),
            username: None,
            start: time.0,
            end: Some(time.1),
            response,
        }
    }

    fn created(user: &str) -> Response {
        Response::Created { user: user.into() }
    }

    fn user(id: &str, registration: &str) -> FinalUser {
        let email = Some("a@example.com".into());
        FinalUser { id: id.into(), registration: registration.into(), email, username: None }
    }

    const DUPLICATE: Response = Response::Duplicate { field: "email" };

    #[test]
    fn true_histories_pass() {
        let unknown = Attempt { end: None, ..attempt("1", (0, 0), Response::Unknown) };
        for (attempts, users) in [
            (vec![attempt("1", (0, 5), created("u"))], vec![user("u", "1")]),
            (
                vec![attempt("1", (0, 5), created("u")), attempt("2", (2, 3), DUPLICATE)],
                vec![user("u", "1")],
            ),
            (vec![unknown.clone()], vec![user("u", "1")]),
            (vec![unknown.clone()], vec![]),
            (vec![unknown.clone(), attempt("1", (3, 9), created("u"))], vec![user("u", "1")]),
            (vec![unknown, attempt("2", (50, 60), DUPLICATE)], vec![user("u", "1")]),
            (vec![attempt("1", (0, 1), Response::NoEffect)], vec![]),
        ] {
            check(&attempts, &users).unwrap();
        }
    }

    #[test]
    fn lost_user_is_found() {
        let attempts = [attempt("1", (0, 5), created("u"))];
        assert!(check(&attempts, &[]).is_err());
    }

    #[test]
    fn doubled_user_is_found() {
        let attempts = [attempt("1", (0, 5), created("u")), attempt("2", (0, 5), created("v"))];
        assert!(check(&attempts, &[user("u", "1"), user("v", "2")]).is_err());
        let twice = [attempt("1", (0, 5), created("u")), attempt("1", (6, 9), created("v"))];
        assert!(check(&twice, &[user("u", "1"), user("v", "1")]).is_err());
    }

    #[test]
    fn resurrected_user_is_found() {
        let attempts = [attempt("1", (0, 5), Response::NoEffect)];
        assert!(check(&attempts, &[user("u", "1")]).is_err());
        assert!(check(&[], &[user("u", "1")]).is_err());
    }

    #[test]
    fn another_users_token_is_found() {
        let attempts = [attempt("1", (0, 5), created("u")), attempt("2", (6, 9), created("u"))];
        assert!(check(&attempts, &[user("u", "1")]).is_err());
    }

    #[test]
    fn duplicate_before_any_user_is_found() {
        let attempts = [attempt("2", (0, 5), DUPLICATE), attempt("1", (6, 9), created("u"))];
        assert!(check(&attempts, &[user("u", "1")]).is_err());
        assert!(check(&[attempt("2", (0, 5), DUPLICATE)], &[]).is_err());
    }

    #[test]
    fn duplicate_of_an_own_registration_is_found() {
        let attempts = [attempt("1", (0, 5), created("u")), attempt("1", (6, 9), DUPLICATE)];
        assert!(check(&attempts, &[user("u", "1")]).is_err());
    }

    #[test]
    fn key_called_reused_without_another_document_is_found() {
        let reused =
            [attempt("1", (0, 5), created("u")), attempt("1", (6, 9), Response::KeyReused)];
        assert!(check(&reused, &[user("u", "1")]).is_err());
    }
}
