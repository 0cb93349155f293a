//! The kernel against the world: hashes others have published, and the `bcrypt` crate.

use super::self_test::{KNOWN, KNOWN_PASSWORD};
use super::*;
use proptest::prelude::*;

/// From the tests of Solar Designer's `crypt_blowfish` and of jBCrypt.
const PUBLISHED: &[(&[u8], &str)] = &[
    (b"U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    (b"U*U*", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK"),
    (b"U*U*U", "$2a$05$XXXXXXXXXXXXXXXXXXXXXOAcXxm9kjPGEMsLznoKqmqw7tc8WCx4a"),
    (b"", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy"),
    (
        b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
        "$2a$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui",
    ),
    (b"\xa3", "$2y$05$/OK.fbVrR/bpIqNJ5ianF.Sa7shbm4.OzKpvFnX1pQLmQW96oUlCq"),
    (b"\xff\xff\xa3", "$2b$05$/OK.fbVrR/bpIqNJ5ianF.CE5elHaaO4EbggVDjb8P19RukzXSM3e"),
    (&[0xaa; 72], "$2a$05$/OK.fbVrR/bpIqNJ5ianF.swQOIzjOiJ9GHEPuhEkvqrUyvWhEMx6"),
    (b"", "$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s."),
    (b"a", "$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe"),
    (b"abc", "$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i"),
    (b"abcdefghijklmnopqrstuvwxyz", "$2a$06$.rCVZVOThsIa97pEDOxvGuRRgzG64bvtJ0938xuqzv18d3ZpQhstC"),
    (
        b"~!@#$%^&*()      ~!@#$%^&*()PNBFRD",
        "$2a$06$fPIsBO8qRqkjj273rfaOI.HtSV9jLDpTbZn782DC6/t7qT67P6FfO",
    ),
    (b"abcdefghijklmnopqrstuvwxyz", "$2a$08$aTsUwsyowQuzRrDqFflhgekJ8d9/7Z3GV3UcgvzQW3J5zMyrTvlz."),
];

#[test]
fn published_hashes_come_out() {
    let mut state = Lanes::new();
    for (password, published) in PUBLISHED {
        let parts: bcrypt::HashParts = published.parse().expect("a bcrypt string");
        let job = Job { password, salt: parts.get_salt_raw() };
        // `$2a$` and `$2y$` differ from `$2b$` by faults none of these passwords runs into
        let expected = format!("$2b${}", &published[4..]);
        assert_eq!(by_lanes(&mut state, parts.get_cost(), &[job]), [expected]);
    }
}

#[test]
fn the_self_test_passes_and_its_hashes_are_the_crate_s() {
    assert_eq!(self_test(), Ok(()));
    for (lane, known) in KNOWN.iter().enumerate() {
        assert_eq!(bcrypt::verify(&KNOWN_PASSWORD[..LONGEST >> lane], known).ok(), Some(true));
    }
}

#[test]
fn nothing_stays_behind() {
    let mut state = Lanes::new();
    let job = Job { password: b"secret", salt: [7; 16] };
    state.hash(4, &[job; MAX]);
    is_wiped(&state);
    (0..MAX).for_each(|_| state.begin(4, &job));
    state.advance(16);
    while state.end().is_some() {}
    is_wiped(&state);
}

fn is_wiped(state: &Lanes) {
    assert_eq!(state.taken(), 0);
    assert!(state.ciphers.iter().flatten().all(|&word| word == 0));
    assert!(state.passwords.iter().chain(&state.salts).flatten().all(|&word| word == 0));
}

#[test]
fn no_jobs_are_no_work() {
    assert!(Lanes::new().hash(31, &[]).is_empty());
    assert_eq!(Lanes::new().advance(100), 0);
    assert_eq!(Lanes::new().end(), None);
}

#[test]
#[should_panic(expected = "a job more than the 8 lanes hold")]
fn a_job_too_many_is_refused() {
    Lanes::new().hash(4, &[Job { password: b"", salt: [0; 16] }; MAX + 1]);
}

proptest! {
    // An unoptimised kernel is twenty times slower; there fewer cases must do.
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 32 } else { 512 }))]

    #[test]
    fn every_lane_is_bcrypt(
        // the cheap costs more often: what a costly one adds is time
        cost in prop_oneof![8 => Just(4_u32), 4 => Just(5), 2 => Just(6), 1 => 7..=8_u32],
        passwords in prop::collection::vec((password(), any::<[u8; 16]>()), 1..=MAX),
    ) {
        let jobs: Vec<_> =
            passwords.iter().map(|(password, salt)| Job { password, salt: *salt }).collect();
        let expected: Vec<_> = jobs.iter().map(|job| by_crate(cost, job)).collect();
        prop_assert_eq!(by_lanes(&mut Lanes::new(), cost, &jobs), expected);
    }

    /// Jobs of several costs come and go while others are half-way.
    #[test]
    fn whoever_joins_on_the_way_is_bcrypt_too(
        jobs in prop::collection::vec((password(), any::<[u8; 16]>(), 4..=6_u32, 0..40_u32), 1..=12),
        width in 1..=MAX,
    ) {
        let (mut state, mut inside, mut done) = (Lanes::new(), Vec::new(), vec![None; jobs.len()]);
        let mut waiting = jobs.iter().enumerate().peekable();
        while waiting.peek().is_some() || !inside.is_empty() {
            while inside.len() < width
                && let Some((number, (password, salt, cost, _))) = waiting.next()
            {
                state.begin(*cost, &Job { password, salt: *salt });
                inside.push(number);
                // Not all at once: each finds the others at another place.
                state.advance(jobs[number].3);
            }
            state.advance(u32::MAX);
            while let Some((lane, digest)) = state.end() {
                done[inside.swap_remove(lane)] = Some(digest);
            }
        }
        for ((password, salt, cost, _), digest) in jobs.iter().zip(done) {
            let hashed = encode(*cost, salt, &digest.expect("every job ends"));
            prop_assert_eq!(hashed, by_crate(*cost, &Job { password, salt: *salt }));
        }
        is_wiped(&state);
    }
}

/// Any bytes, the lengths at the borders more often than chance would have them.
fn password() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![Just(0), Just(1), Just(LONGEST - 1), Just(LONGEST), 0..=LONGEST];
    length.prop_flat_map(|length| prop::collection::vec(any::<u8>(), length))
}

fn by_lanes(state: &mut Lanes, cost: u32, jobs: &[Job<'_>]) -> Vec<String> {
    let digests = state.hash(cost, jobs);
    jobs.iter().zip(&digests).map(|(job, digest)| encode(cost, &job.salt, digest)).collect()
}

fn by_crate(cost: u32, job: &Job<'_>) -> String {
    bcrypt::hash_with_salt(job.password, cost, job.salt)
        .expect("a cost the crate takes")
        .format_for_version(bcrypt::Version::TwoB)
}
