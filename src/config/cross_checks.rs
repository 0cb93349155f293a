//! Checks that concern several settings.

use super::{Problems, QueueUrl, Role, Settings};

/// Adds a problem for each combination of settings that cannot work.
pub(super) fn check(settings: &Settings, problems: &mut Problems) {
    if settings.role != Role::All && matches!(settings.queue.url, QueueUrl::Local) {
        problems.add(format!(
            "role: {} cannot run alone on the in-process queue (local:); set MUSTER_QUEUE to an amqp:// \
             URL, or use --role all",
            settings.role.as_str()
        ));
    }
    let has_key = settings.token.secret.is_some() || !settings.token.key_files.is_empty();
    if settings.role.has_worker() && !has_key && !settings.is_embedded() {
        problems.add(
            "token.secret: required for a worker on RabbitMQ or MongoDB, unless token.key_files is set; \
             set JWT_SECRET or JWT_SECRET_FILE to the same value on all workers; make one with: \
             openssl rand -base64 48"
                .to_owned(),
        );
    }
    let is_amqp = matches!(settings.queue.url, QueueUrl::Amqp(_));
    let queue = &settings.queue;
    let has_seal_key = !queue.seal_private_keys.is_empty();
    if is_amqp && settings.role.has_worker() && queue.require_sealed && !has_seal_key {
        problems.add(
            "queue.require_sealed: the worker also needs queue.seal_private_keys \
             (MUSTER_QUEUE_SEAL_PRIVATE_KEYS), or it rejects every registration; `muster keygen` makes a \
             key pair"
                .to_owned(),
        );
    }
    // With separate roles, the other setting applies to another process.
    if settings.role == Role::All && settings.store.timeout * 2 >= settings.front.request_timeout {
        problems.add(format!(
            "store.timeout: expected less than half of front.request_timeout ({:?}), got {:?}; a write and \
             a read must both fit, or clients get 504 instead of 500 in a store outage",
            settings.front.request_timeout, settings.store.timeout
        ));
    }
}
