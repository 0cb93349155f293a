//! What is wrong with settings that are right one by one.

use super::{Problems, QueueUrl, Role, Settings};

/// Looks at all of them together.
pub(super) fn check(settings: &Settings, problems: &mut Problems) {
    if settings.role != Role::All && matches!(settings.queue.url, QueueUrl::Local) {
        let role = if settings.role == Role::Front { "front" } else { "worker" };
        problems.add(format!(
            "role: a {role} alone cannot use the in-process queue (local:), nobody is at its other \
             end; set MUSTER_QUEUE to an amqp:// URL, or run with --role all"
        ));
    }
    let signs = settings.token.secret.is_some() || !settings.token.key_files.is_empty();
    if settings.role.has_worker() && !signs && !settings.is_embedded() {
        problems.add(
            "token.secret: a worker on RabbitMQ or MongoDB needs JWT_SECRET (or JWT_SECRET_FILE), \
             the same on all workers, or token.key_files; make one with: openssl rand -base64 48"
                .to_owned(),
        );
    }
    let amqp = matches!(settings.queue.url, QueueUrl::Amqp(_));
    let queue = &settings.queue;
    if amqp && settings.role.has_worker() && queue.require_sealed && queue.seal_private_keys.is_empty() {
        problems.add(
            "queue.require_sealed: a worker without queue.seal_private_keys (MUSTER_QUEUE_SEAL_PRIVATE_KEYS) can \
             open nothing, so it would register nobody; `muster keygen` makes a pair"
                .to_owned(),
        );
    }
    // Of a front or a worker alone the other setting is in another process.
    if settings.role == Role::All && settings.store.timeout * 2 >= settings.front.request_timeout {
        problems.add(
            "store.timeout: must be less than half of front.request_timeout: a write and the read that follows \
             must both fit, or a store outage would be answered as a timeout"
                .to_owned(),
        );
    }
}
