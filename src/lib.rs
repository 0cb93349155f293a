//! muster
pub mod contract;
pub mod signup;
