//! One thread's lanes: jobs begin, advance together and finish one by one.

use zeroize::Zeroize;

use crate::blowfish::{Cipher, Key, digest, fill_password, fill_salt, start};
use crate::kernel::{Backend, iterate};
use crate::{Cost, Digest, Error, MAX_LANES, MAX_PASSWORD_BYTES, ParsedHash};

/// Lanes that [`hash_many`] and [`verify_many`] use: the fastest, or within a tenth of it, on every
/// processor that was measured.
const DEFAULT_WIDTH: usize = 6;

/// One password to hash.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// At most [`MAX_PASSWORD_BYTES`] bytes of any value. A NUL byte is part of the password, whereas
    /// implementations in C end the password there.
    pub password: &'a [u8],
    /// New random bytes for each password.
    pub salt: [u8; 16],
}

/// The lanes of one thread, allocated once.
///
/// Keys and cipher states are wiped when a job finishes and when this is dropped.
//
// Jobs are in the first lanes, without gaps. Everything is at constant offsets from one pointer, which
// leaves the registers to the lanes. The alignment keeps the state within one 64 KiB page: some
// unaligned placements are 10 to 20 per cent slower.
#[repr(C, align(65536))]
pub struct Lanes {
    ciphers: [Cipher; MAX_LANES],
    passwords: [Key; MAX_LANES],
    salts: [Key; MAX_LANES],
    /// Iterations that each job still needs.
    left: [u32; MAX_LANES],
    /// Number of lanes with a job.
    taken: usize,
    /// Number of lanes.
    width: usize,
    backend: Backend,
}

impl Lanes {
    /// Up to `width` lanes. Boxed, because the state takes 64 KiB and must not move while it holds a
    /// secret.
    ///
    /// # Errors
    /// [`Error::WidthOutOfRange`] unless `width` is 1 to [`MAX_LANES`]; [`Error::BackendUnavailable`] if this
    /// processor cannot run the backend.
    pub fn new(backend: Backend, width: usize) -> Result<Box<Self>, Error> {
        if !(1..=MAX_LANES).contains(&width) {
            return Err(Error::WidthOutOfRange(width));
        }
        if !backend.is_available() {
            return Err(Error::BackendUnavailable);
        }
        Ok(Box::new(Self {
            ciphers: [[0; _]; _],
            passwords: [[0; _]; _],
            salts: [[0; _]; _],
            left: [0; _],
            taken: 0,
            width,
            backend,
        }))
    }

    /// The number of lanes.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The number of lanes with a job.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Begins a job in the next lane.
    ///
    /// # Errors
    /// [`Error::LanesFull`] if every lane has a job; [`Error::PasswordTooLong`].
    pub fn begin(&mut self, cost: Cost, job: &Job<'_>) -> Result<(), Error> {
        if self.taken == self.width {
            return Err(Error::LanesFull);
        }
        if job.password.len() > MAX_PASSWORD_BYTES {
            return Err(Error::PasswordTooLong(job.password.len()));
        }
        let lane = self.taken;
        fill_password(&mut self.passwords[lane], job.password);
        fill_salt(&mut self.salts[lane], &job.salt);
        start(&mut self.ciphers[lane], &self.passwords[lane], &self.salts[lane]);
        self.left[lane] = cost.iterations();
        self.taken += 1;
        Ok(())
    }

    /// Advances every job by up to this many iterations, at most to the end of the job that finishes
    /// first. Returns the number of iterations done.
    ///
    /// Between two calls other jobs may begin: a server calls it with a fraction of a hash.
    pub fn advance(&mut self, iterations: u32) -> u32 {
        let left = &mut self.left[..self.taken];
        let iterations = left.iter().copied().min().unwrap_or(0).min(iterations);
        left.iter_mut().for_each(|left| *left -= iterations);
        let keys: [&[Key]; 2] = [&self.passwords, &self.salts];
        iterate(self.backend, self.taken, &mut self.ciphers, keys, iterations);
        iterations
    }

    /// Finishes a job that needs no more iterations, and returns its lane and its digest. The job of the last
    /// occupied lane moves to this lane, as with [`Vec::swap_remove`].
    pub fn finish(&mut self) -> Option<(usize, Digest)> {
        let lane = self.left[..self.taken].iter().position(|left| *left == 0)?;
        let digest = digest(&self.ciphers[lane]);
        self.taken -= 1;
        let last = self.taken;
        self.left[lane] = self.left[last];
        for keys in [&mut self.passwords, &mut self.salts] {
            keys.copy_within(last..=last, lane);
            keys[last].zeroize();
        }
        self.ciphers.copy_within(last..=last, lane);
        self.ciphers[last].zeroize();
        Some((lane, digest))
    }

    /// Hashes any number of passwords and returns the digests in the order of the jobs. A lane that finishes
    /// takes the next job.
    ///
    /// # Errors
    /// [`Error::LanesInUse`] if jobs are in progress; [`Error::PasswordTooLong`] if any password is.
    pub fn hash_many(&mut self, jobs: &[(Cost, Job<'_>)]) -> Result<Vec<Digest>, Error> {
        if self.taken > 0 {
            return Err(Error::LanesInUse);
        }
        let too_long = jobs.iter().map(|(_, job)| job.password.len());
        if let Some(bytes) = too_long.max().filter(|bytes| *bytes > MAX_PASSWORD_BYTES) {
            return Err(Error::PasswordTooLong(bytes));
        }
        let mut digests = vec![[0; 23]; jobs.len()];
        let (mut waiting, mut begun) = (jobs.iter().enumerate(), Vec::with_capacity(self.width));
        loop {
            while self.taken < self.width
                && let Some((number, (cost, job))) = waiting.next()
            {
                self.begin(*cost, job)?;
                begun.push(number);
            }
            if begun.is_empty() {
                return Ok(digests);
            }
            self.advance(u32::MAX);
            while let Some((lane, digest)) = self.finish() {
                digests[begun.swap_remove(lane)] = digest;
            }
        }
    }
}

#[cfg(test)]
impl Lanes {
    /// Whether no lane contains data of a job.
    pub(crate) fn is_wiped(&self) -> bool {
        self.taken == 0
            && self.ciphers.iter().flatten().all(|word| *word == 0)
            && self.passwords.iter().chain(&self.salts).flatten().all(|word| *word == 0)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.ciphers.zeroize();
        self.passwords.zeroize();
        self.salts.zeroize();
    }
}

/// Hashes any number of passwords at one cost into `$2b$` strings, in the order of the jobs, on this
/// thread.
///
/// # Errors
/// [`Error::PasswordTooLong`] if any password is longer than [`MAX_PASSWORD_BYTES`].
pub fn hash_many(cost: Cost, jobs: &[Job<'_>]) -> Result<Vec<String>, Error> {
    let jobs: Vec<_> = jobs.iter().map(|job| (cost, *job)).collect();
    let digests = Lanes::new(Backend::preferred(), DEFAULT_WIDTH)?.hash_many(&jobs)?;
    let hash = |((cost, job), digest): (&(Cost, Job<'_>), Digest)| {
        ParsedHash { cost: *cost, salt: job.salt, digest }.to_string()
    };
    Ok(jobs.iter().zip(digests).map(hash).collect())
}

/// Verifies each password against its bcrypt string, in constant time for each pair, on this thread.
///
/// # Errors
/// [`Error::MalformedHash`] if any string is not a bcrypt hash; [`Error::PasswordTooLong`].
pub fn verify_many(pairs: &[(&[u8], &str)]) -> Result<Vec<bool>, Error> {
    let parsed: Vec<ParsedHash> =
        pairs.iter().map(|(_, hash)| hash.parse()).collect::<Result<_, _>>()?;
    let jobs: Vec<_> = pairs
        .iter()
        .zip(&parsed)
        .map(|((password, _), hash)| (hash.cost, Job { password, salt: hash.salt }))
        .collect();
    let digests = Lanes::new(Backend::preferred(), DEFAULT_WIDTH)?.hash_many(&jobs)?;
    Ok(parsed.iter().zip(&digests).map(|(hash, digest)| hash.matches(digest)).collect())
}
