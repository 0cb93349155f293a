//! Tests of the kernels with published hashes and with the `bcrypt` crate.

use proptest::prelude::*;

use crate::self_test::{KNOWN, KNOWN_PASSWORD};
use crate::*;

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

/// Backends of this processor. Every test of a kernel runs on each.
fn backends() -> Vec<Backend> {
    Backend::ALL.into_iter().filter(|backend| backend.is_available()).collect()
}

fn cost(log2: u32) -> Cost {
    Cost::new(log2).unwrap()
}

#[test]
fn published_hashes_are_computed_and_verified() {
    assert_eq!(verify_many(PUBLISHED).unwrap(), [true; PUBLISHED.len()]);
    for (password, published) in PUBLISHED {
        let hash: ParsedHash = published.parse().unwrap();
        assert_eq!(hash.to_string(), format!("$2b${}", &published[4..]));
        for backend in backends() {
            let job = (hash.cost, Job { password, salt: hash.salt });
            let digests = Lanes::new(backend, 1).unwrap().hash_many(&[job]).unwrap();
            assert_eq!(digests, [hash.digest], "{backend} {published}");
        }
    }
    let wrong: Vec<(&[u8], &str)> =
        PUBLISHED.iter().map(|(_, hash)| (&b"wrong"[..], *hash)).collect();
    assert_eq!(verify_many(&wrong).unwrap(), [false; PUBLISHED.len()]);
}

#[test]
fn self_test_passes_on_every_backend() {
    for backend in backends() {
        assert_eq!(self_test(backend), Ok(()));
    }
    for (lane, known) in KNOWN.iter().enumerate() {
        let password = &KNOWN_PASSWORD[..MAX_PASSWORD_BYTES >> lane];
        assert_eq!(bcrypt::verify(password, known).ok(), Some(true));
    }
}

#[test]
fn limits_are_errors() {
    assert_eq!(Cost::new(3), Err(Error::CostOutOfRange(3)));
    assert_eq!(Cost::new(32), Err(Error::CostOutOfRange(32)));
    assert_eq!((Cost::MIN.iterations(), Cost::MAX.iterations()), (16, 1 << 31));
    for width in [0, MAX_LANES + 1] {
        let lanes = Lanes::new(Backend::Portable, width);
        assert_eq!(lanes.err(), Some(Error::WidthOutOfRange(width)));
    }
    let mut lanes = Lanes::new(Backend::Portable, 2).unwrap();
    let job = Job { password: b"secret", salt: [0; 16] };
    let long = Job { password: &[b'x'; 73], salt: [0; 16] };
    assert_eq!(lanes.begin(Cost::MIN, &long), Err(Error::PasswordTooLong(73)));
    assert_eq!(lanes.hash_many(&[(Cost::MIN, long)]), Err(Error::PasswordTooLong(73)));
    assert_eq!(lanes.taken(), 0);
    assert_eq!(lanes.begin(Cost::MIN, &job), Ok(()));
    assert_eq!(lanes.begin(Cost::MIN, &job), Ok(()));
    assert_eq!(lanes.begin(Cost::MIN, &job), Err(Error::LanesFull));
    assert_eq!(lanes.hash_many(&[]), Err(Error::LanesInUse));
}

#[test]
fn lanes_without_jobs_do_no_work() {
    let mut lanes = Lanes::new(Backend::Portable, MAX_LANES).unwrap();
    assert_eq!(lanes.hash_many(&[]), Ok(Vec::new()));
    assert_eq!((lanes.advance(100), lanes.finish()), (0, None));
}

#[test]
fn finished_lanes_hold_no_secret() {
    for backend in backends() {
        let mut lanes = Lanes::new(backend, MAX_LANES).unwrap();
        let job = Job { password: b"secret", salt: [7; 16] };
        lanes.hash_many(&[(Cost::MIN, job); MAX_LANES + 1]).unwrap();
        assert!(lanes.is_wiped());
    }
}

#[test]
fn malformed_hashes_are_errors() {
    let good = KNOWN[0];
    assert!(good.parse::<ParsedHash>().is_ok());
    for bad in [
        "",
        "$2b$",
        "$2b$04",
        &good[1..],
        &good[..59],
        &format!("{good}."),
        &good.replacen("2b", "2x", 1),
        &good.replacen("$04$", "$03$", 1),
        &good.replacen("$04$", "$32$", 1),
        &good.replacen("$04$", "$+4$", 1),
        &good.replacen("..CA", "..C=", 1),
        &good.replacen("..CA", "..CÄ", 1),
    ] {
        assert_eq!(bad.parse::<ParsedHash>(), Err(Error::MalformedHash), "{bad}");
    }
    assert_eq!(
        format!("{:?}", good.parse::<ParsedHash>().unwrap()),
        "ParsedHash { cost: Cost(4), .. }"
    );
}

proptest! {
    // An unoptimised kernel is twenty times slower.
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 512 }))]

    #[test]
    fn every_lane_of_every_backend_is_bcrypt(
        // Cheap costs more often: expensive ones only take longer.
        log2 in prop_oneof![8 => Just(4_u32), 4 => Just(5), 2 => Just(6), 1 => 7..=8_u32],
        passwords in prop::collection::vec((password(), any::<[u8; 16]>()), 1..=2 * MAX_LANES),
        width in 1..=MAX_LANES,
    ) {
        let jobs: Vec<_> = passwords
            .iter()
            .map(|(password, salt)| (cost(log2), Job { password, salt: *salt }))
            .collect();
        let expected: Vec<_> = jobs.iter().map(by_crate).collect();
        for backend in backends() {
            let digests = Lanes::new(backend, width).unwrap().hash_many(&jobs).unwrap();
            prop_assert_eq!(strings(&jobs, &digests), &expected[..]);
        }
    }

    /// Jobs of several costs begin while others are in progress.
    #[test]
    fn jobs_that_start_while_others_run_are_bcrypt(
        jobs in prop::collection::vec((password(), any::<[u8; 16]>(), 4..=6_u32, 0..40_u32), 1..=12),
        width in 1..=MAX_LANES,
        backend in prop::sample::select(backends()),
    ) {
        let mut state = Lanes::new(backend, width).unwrap();
        let (mut begun, mut done) = (Vec::new(), vec![[0; 23]; jobs.len()]);
        let mut waiting = jobs.iter().enumerate().peekable();
        while waiting.peek().is_some() || !begun.is_empty() {
            while state.taken() < width
                && let Some((number, (password, salt, log2, steps))) = waiting.next()
            {
                state.begin(cost(*log2), &Job { password, salt: *salt }).unwrap();
                begun.push(number);
                // Jobs start at different progress of the others.
                state.advance(*steps);
            }
            state.advance(u32::MAX);
            while let Some((lane, digest)) = state.finish() {
                done[begun.swap_remove(lane)] = digest;
            }
        }
        let jobs: Vec<_> = jobs
            .iter()
            .map(|(password, salt, log2, _)| (cost(*log2), Job { password, salt: *salt }))
            .collect();
        prop_assert_eq!(strings(&jobs, &done), jobs.iter().map(by_crate).collect::<Vec<_>>());
        prop_assert!(state.is_wiped());
    }

    #[test]
    fn formatted_hash_parses_to_the_same_hash(
        log2 in 4..=31_u32, salt in any::<[u8; 16]>(), digest in any::<[u8; 23]>(),
    ) {
        let hash = ParsedHash { cost: cost(log2), salt, digest };
        prop_assert_eq!(hash.to_string().parse::<ParsedHash>(), Ok(hash));
    }
}

/// Any bytes, with lengths at the limits more often than by chance.
fn password() -> impl Strategy<Value = Vec<u8>> {
    let limits = [0, 1, MAX_PASSWORD_BYTES - 1, MAX_PASSWORD_BYTES];
    let length = prop_oneof![prop::sample::select(limits.to_vec()), 0..=MAX_PASSWORD_BYTES];
    length.prop_flat_map(|length| prop::collection::vec(any::<u8>(), length))
}

fn strings(jobs: &[(Cost, Job<'_>)], digests: &[Digest]) -> Vec<String> {
    let hash = |((cost, job), digest): (&(Cost, Job<'_>), &Digest)| {
        ParsedHash { cost: *cost, salt: job.salt, digest: *digest }.to_string()
    };
    jobs.iter().zip(digests).map(hash).collect()
}

fn by_crate((cost, job): &(Cost, Job<'_>)) -> String {
    bcrypt::hash_with_salt(job.password, cost.log2(), job.salt)
        .unwrap()
        .format_for_version(bcrypt::Version::TwoB)
}
