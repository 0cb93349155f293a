//! Tests of the tracker with outcomes in any order.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::contract::Policy;
use crate::domain::{ContractId, FailureCode, Millis, Outcome, RejectionCode, User, UserId};
use crate::queue::NoReply;

fn tracker() -> Tracker {
    let contract = ContractId::Username;
    let rules =
        RowRules { contract, id_field: None, policy: Policy::default(), allow_hash_like: false };
    let key = IdempotencyKey::parse(b"a-key-of-the-tests-1").unwrap();
    let identity = RowIdentity { key, new_key: true, trace: TraceContext::default() };
    Tracker::new(rules, 1000, identity, Arc::default())
}

fn row(user: &str) -> String {
    json!({ "username": user, "password": "secret-1" }).to_string() + "\n"
}

/// Reads the pushed bytes and returns the rows that can be sent.
fn sendable(tracker: &mut Tracker) -> Vec<BulkRow> {
    let mut rows = Vec::new();
    loop {
        let is_empty = tracker.read();
        let before = rows.len();
        rows.extend(std::iter::from_fn(|| tracker.next_unsent()));
        if is_empty || rows.len() == before {
            return rows;
        }
    }
}

fn registered() -> Outcome {
    let user = User {
        id: UserId::generate(),
        contract: ContractId::Username,
        username: Some("ann".to_owned()),
        email: None,
        fullname: None,
        created_at: Millis(0),
        updated_at: Millis(0),
    };
    Outcome::Registered { user, token: None, replayed: false, by_other_registration: false }
}

fn reply(row: &BulkRow, outcome: Result<Outcome, NoReply>) -> RowReply {
    RowReply { tag: row.tag, id: row.id.clone(), outcome }
}

/// Line, outcome and code of each report that is due.
fn due(tracker: &mut Tracker) -> Vec<(u64, String, Option<String>)> {
    let lines = String::from_utf8(tracker.due_reports()).unwrap();
    let text = |report: &Value, key: &str| report[key].as_str().map(str::to_owned);
    lines
        .lines()
        .map(|line| {
            let report: Value = serde_json::from_str(line).unwrap();
            let line = report["line"].as_u64().unwrap();
            (line, text(&report, "outcome").unwrap(), text(&report, "code"))
        })
        .collect()
}

fn done(line: u64, outcome: &str, code: Option<&str>) -> (u64, String, Option<String>) {
    (line, outcome.to_owned(), code.map(str::to_owned))
}

#[test]
fn reports_keep_the_order_of_the_rows() {
    let mut tracker = tracker();
    tracker.push((row("ann") + "{\n" + &row("bob")).as_bytes());
    let rows = sendable(&mut tracker);
    assert_eq!(rows.iter().map(|row| row.tag).collect::<Vec<_>>(), [0, 2]);
    assert!(tracker.is_waiting() && due(&mut tracker).is_empty());
    tracker.record_reply(reply(&rows[1], Ok(registered())));
    assert!(due(&mut tracker).is_empty(), "the first row has no outcome yet");
    tracker.record_reply(reply(&rows[0], Ok(RejectionCode::Duplicate.into())));
    let reports = due(&mut tracker);
    assert_eq!(reports[0], done(1, "rejected", Some("duplicate")));
    assert_eq!((reports[1].0, reports[1].1.as_str()), (2, "rejected"));
    assert_eq!(reports[2], done(3, "registered", None));
    tracker.end();
    assert!(tracker.read() && tracker.all_sent() && tracker.all_reported());
}

#[test]
fn equal_rows_are_sent_one_after_the_other() {
    let mut tracker = tracker();
    tracker.push((row("ann") + &row("ann") + &row("bob")).as_bytes());
    let rows = sendable(&mut tracker);
    assert_eq!(rows.iter().map(|row| row.tag).collect::<Vec<_>>(), [0, 2]);
    assert!(!tracker.all_sent(), "the second row waits for the first");
    tracker.record_reply(reply(&rows[0], Ok(registered())));
    let second = tracker.next_unsent().unwrap();
    assert_eq!(second.tag, 1);
    assert!(tracker.all_sent() && !tracker.all_reported());
}

#[test]
fn failure_fails_the_rows_that_wait_for_it() {
    for outcome in [Ok(FailureCode::Internal.into()), Err(NoReply)] {
        let mut tracker = tracker();
        tracker.push((row("ann") + &row("ann") + &row("ann")).as_bytes());
        let rows = sendable(&mut tracker);
        assert_eq!(rows.len(), 1);
        tracker.record_reply(reply(&rows[0], outcome.clone()));
        let reports = due(&mut tracker);
        assert_eq!(reports[0].1, "failed", "{outcome:?}");
        for (report, line) in reports[1..].iter().zip([2, 3]) {
            assert_eq!(*report, done(line, "failed", Some(EARLIER_ROW_FAILED)));
        }
        assert!(tracker.all_sent() && tracker.all_reported());
        tracker.push(row("ann").as_bytes());
        assert_eq!(sendable(&mut tracker).len(), 1, "a later row is sent");
    }
}

#[test]
fn second_outcome_of_a_row_is_ignored() {
    let mut tracker = tracker();
    tracker.push(row("ann").as_bytes());
    let rows = sendable(&mut tracker);
    tracker.record_reply(reply(&rows[0], Ok(registered())));
    tracker.record_reply(reply(&rows[0], Ok(FailureCode::Internal.into())));
    assert_eq!(due(&mut tracker), [done(1, "registered", None)]);
    tracker.record_reply(reply(&rows[0], Ok(registered())));
    assert!(due(&mut tracker).is_empty());
}

#[test]
fn rows_in_memory_are_bounded_by_the_window() {
    let mut tracker = tracker();
    let body: String = (0..WINDOW + 10).map(|n| row(&format!("ann{n}"))).collect();
    tracker.push(body.as_bytes());
    let rows = sendable(&mut tracker);
    assert_eq!(rows.len(), WINDOW);
    assert!(!tracker.has_capacity());
    tracker.record_reply(reply(&rows[1], Ok(registered())));
    assert!(sendable(&mut tracker).is_empty(), "its report is not due");
    tracker.record_reply(reply(&rows[0], Ok(registered())));
    assert_eq!(due(&mut tracker).len(), 2);
    assert_eq!(sendable(&mut tracker).len(), 2);
}

#[test]
fn drop_unsent_drops_rows_that_were_not_sent() {
    let mut tracker = tracker();
    tracker.push((row("ann") + &row("ann")).as_bytes());
    tracker.read();
    tracker.drop_unsent();
    assert!(tracker.all_sent() && tracker.next_unsent().is_none());
    assert!(!tracker.all_reported());
}

#[test]
fn json_array_is_rejected() {
    let mut tracker = tracker();
    tracker.push(b"[{}]\n");
    assert!(tracker.read() && tracker.is_array());
    assert!(tracker.all_reported());
}

proptest! {
    #[test]
    fn every_row_is_reported_once_and_in_order(
        users in prop::collection::vec(0u8..6, 1..40),
        choices in prop::collection::vec(0usize..1000, 60),
    ) {
        let mut tracker = tracker();
        let body: String = users.iter().map(|user| row(&format!("user{user}"))).collect();
        let (mut chunks, mut in_flight) = (body.as_bytes().chunks(50), Vec::new());
        let (mut reports, mut choices) = (Vec::new(), choices.into_iter().cycle());
        let mut ended = false;
        while !(ended && in_flight.is_empty() && tracker.all_reported()) {
            let choice = choices.next().unwrap();
            if !ended && (choice % 2 == 0 || in_flight.is_empty()) {
                match chunks.next() {
                    Some(chunk) => tracker.push(chunk),
                    None => {
                        tracker.end();
                        ended = true;
                    }
                }
            } else {
                let row: BulkRow = in_flight.swap_remove(choice % in_flight.len());
                let outcome = match choice % 3 {
                    0 => Err(NoReply),
                    1 => Ok(RejectionCode::Duplicate.into()),
                    _ => Ok(registered()),
                };
                tracker.record_reply(reply(&row, outcome));
            }
            for row in sendable(&mut tracker) {
                let user = users[row.tag as usize];
                let is_alone = in_flight.iter().all(|other| users[other.tag as usize] != user);
                prop_assert!(is_alone, "two rows of one user are in flight");
                in_flight.push(row);
            }
            reports.extend(due(&mut tracker).into_iter().map(|(line, ..)| line));
        }
        prop_assert_eq!(reports, (1..=users.len() as u64).collect::<Vec<_>>());
        prop_assert!(tracker.all_sent());
    }
}
