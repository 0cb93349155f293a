//! Tests of header validation and of trust in headers by account.

use super::*;

/// Properties of a registration for `interactive` with one more header.
fn waiting(name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = FieldTable::default();
    put_text(&mut headers, header::CONTRACT, "register");
    headers.insert(name.into(), value);
    BasicProperties::default()
        .with_type("register".into())
        .with_message_id("row-1".into())
        .with_reply_to("registration.reply.x".into())
        .with_expiration("9000".into())
        .with_headers(headers)
}

#[test]
fn delivery_count_is_used_only_for_redeliveries() {
    for (redelivered, count, deliveries) in
        [(false, 3, 0), (false, 100, 0), (true, 3, 3), (true, 0, 1), (true, -1, 1)]
    {
        let properties = waiting("x-delivery-count", AMQPValue::LongLongInt(count));
        let mut delivery = delivered(QueueKind::Interactive, properties, b"{}");
        delivery.redelivered = redelivered;
        let read =
            read(QueueKind::Interactive, &delivery, &broker(), &mut ClockSkews::default(), false);
        assert_eq!(read.unwrap().deliveries, deliveries, "{redelivered}, {count}");
    }
}

#[test]
fn entry_point_header_is_trusted_only_under_own_accounts() {
    let amqp = |producer: &str| Origin::Amqp { producer: producer.to_owned() };
    for (account, claimed, origin) in [
        (None, "http", amqp("")),
        (Some("crm"), "http", amqp("crm")),
        (Some("crm"), "import", amqp("crm")),
        (Some("worker"), "http", Origin::Http),
        (Some("worker"), "import", Origin::Import),
        (Some("worker"), "amqp", amqp("")),
        (Some("front"), "http", Origin::Http),
    ] {
        let text = AMQPValue::LongString(claimed.into());
        let mut properties = waiting(header::ENTRY_POINT, text);
        if let Some(account) = account {
            properties = properties.with_user_id(account.into());
        }
        let message = read_properties(QueueKind::Interactive, properties, b"{}").unwrap();
        assert_eq!(message.origin, origin, "{account:?} claims {claimed}");
        let expiration = matches!(origin, Origin::Amqp { .. }).then(|| Duration::from_secs(9));
        assert_eq!(message.expiration, expiration, "{account:?} claims {claimed}");
    }
}

#[test]
fn reply_queue_must_belong_to_the_account() {
    for (account, queue, allowed) in [
        ("crm", "crm.crm.replies", true),
        ("crm", "crm.other.replies", false),
        ("crm", "crm.replies", false),
        ("crm", "crm.crm.", false),
        ("crm", "crm.crm.a.b", false),
        ("crm.a", "crm.crm.a.b", true),
        ("", "crm..replies", false),
        ("", "amq.rabbitmq.reply-to.x", true),
        ("", "registration.reply.x", true),
        ("crm", "registration.bulk", false),
    ] {
        assert_eq!(
            is_allowed_reply_queue(queue, account, &broker()),
            allowed,
            "{account}: {queue}"
        );
    }
}

#[test]
fn header_of_another_type_is_reported_with_the_type_found() {
    let array = AMQPValue::FieldArray(vec![AMQPValue::LongString("flat-name".into())].into());
    for (name, value, expected) in [
        (
            header::CONTRACT,
            AMQPValue::Boolean(true),
            "contract: expected UTF-8 text, got a boolean",
        ),
        (header::CONTRACT, array, "contract: expected UTF-8 text, got an array"),
        (
            header::CONTRACT,
            AMQPValue::LongString(vec![0xff].into()),
            "contract: expected UTF-8 text, got text that is not UTF-8",
        ),
        (
            header::DEADLINE,
            AMQPValue::LongString("5000".into()),
            "deadline-ms: expected a whole number, got text",
        ),
        (
            header::SENT_AT,
            AMQPValue::Double(1.5),
            "sent-at-ms: expected a whole number, got a floating-point number",
        ),
        (header::SEALED, AMQPValue::LongInt(1), "sealed: expected UTF-8 text, got a whole number"),
        (header::NEW_KEY, AMQPValue::Void, "new-key: expected a boolean, got no value"),
    ] {
        let mut headers = FieldTable::default();
        put_text(&mut headers, header::CONTRACT, "flat-name");
        headers.insert(name.into(), value);
        let properties = BasicProperties::default()
            .with_type("register".into())
            .with_message_id("1".into())
            .with_reply_to("registration.reply.x".into())
            .with_expiration("5000".into())
            .with_headers(headers);
        let wrong = read_properties(QueueKind::Interactive, properties, b"{}").unwrap_err();
        assert_eq!(wrong, expected);
    }
}
