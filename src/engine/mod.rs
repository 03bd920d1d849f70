//! Decides, for one lane, what is sent, kept, dead-lettered and committed; no IO, no clock, no async.

pub mod settings;
pub mod verdict;
