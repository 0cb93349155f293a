//! The names of the headers. Other systems write and read them, so none ever changes its meaning.

/// The contract of the document.
pub(super) const CONTRACT: &str = "contract";
/// Milliseconds that were left when it was sent.
pub(super) const DEADLINE: &str = "deadline-ms";
/// When it was sent, by the sender's clock.
pub(super) const SENT_AT: &str = "sent-at-ms";
/// That nothing can be registered under this id yet.
pub(super) const FRESH: &str = "fresh";
/// The key of a sealed password.
pub(super) const SEALED: &str = "sealed";
/// How often muster has put a message back.
pub(super) const ATTEMPT: &str = "attempt";
/// Who published a message that muster put back.
pub(super) const PRODUCER: &str = "producer";
/// Where the reply to a message goes that muster put back.
pub(super) const REPLY_TO: &str = "reply-to";
/// What a worker can register in a thousand seconds.
pub(super) const PER_KILOSECOND: &str = "per-kilosecond";
/// The threads on which it hashes them.
pub(super) const THREADS: &str = "threads";
/// How long the stages at the worker took.
pub(super) const SERVER_TIMING: &str = "server-timing";
/// Why a message is a dead letter.
pub(super) const REASON: &str = "reason";
/// What could not be read of it.
pub(super) const DETAIL: &str = "detail";
/// Through which door it came.
pub(super) const DOOR: &str = "door";
/// That its password is gone.
pub(super) const PASSWORD_REMOVED: &str = "password-removed";
/// How large the body was that is gone.
pub(super) const BODY_BYTES: &str = "body-bytes";
