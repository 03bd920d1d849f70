//! The meaning of a reply for one row (`Verdict`) and for one request (`Answer`): the only language that providers speak to
//! the engine.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

/// A row in the provider's own bytes, ready to be put into a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedRow {
    /// The row as it stands in the request: a JSON object.
    pub body: Bytes,
    /// The identity of this content and version; what a single request's idempotency key is, and what a batch's key is made from.
    pub identity: Uuid,
}

/// The meaning of a reply for one row; the crate docs say what the lane then does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The provider took the row.
    Delivered,
    /// The provider refuses this row, whatever else it takes: a dead letter.
    Rejected(Rejection),
    /// A refusal that may also mean that the account refuses every row (Vitally's 400): decided by the rows of other users.
    Suspect(Rejection),
    /// The request was refused as a whole without naming a row: halve it, down to single rows.
    Split,
    /// The provider says wait. `None`: it did not say how long.
    Throttled { retry_after: Option<Duration> },
    /// The outcome is unknown or the provider is ill: back off as a lane, then send again.
    Unavailable(Outage),
    /// Token, address or account are wrong: nothing gets through until an operator fixes it.
    AccountFault(AccountFault),
    /// A job of another client runs and the provider takes one at a time: wait, attempts unchanged.
    Busy { retry_after: Option<Duration> },
    /// A job ended badly without naming a row: send once more, then halve, then dead letter.
    JobFailed(Rejection),
    /// The idempotency key was seen with other bytes: send once more under a new key, then dead letter.
    KeyReused(Rejection),
    /// The connection closed and declared the request untouched: send the row again at once, free of the limit.
    Untouched,
}

/// The meaning of one reply for the rows of its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The same for each row.
    All(Verdict),
    /// One verdict per row, in the order sent; always as many as rows were sent.
    PerRow(Vec<Verdict>),
    /// The rows became a job, or the job still runs: ask again after `poll_after`. The rows stay in flight.
    Pending { job: JobId, poll_after: Duration },
}

/// The provider's opaque name of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobId(pub String);

/// The reason why a row is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: RejectReason,
    /// The field that the provider or the preflight names; a key, never a value.
    pub field: Option<String>,
    /// The HTTP status; `None` where no request was made.
    pub status: Option<u16>,
    /// A short text without personal data for the dead letter's header.
    pub message: String,
}

impl Rejection {
    /// A refusal by the local preflight: no request was made, no budget spent.
    pub fn local(reason: RejectReason, field: Option<&str>, message: impl Into<String>) -> Self {
        Rejection { reason, field: field.map(str::to_owned), status: None, message: message.into() }
    }
}

/// Closed set of reasons for a refused row: metric labels and dead-letter headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Vitally: neither account nor organization is known.
    NoAccount,
    /// The provider's validation, or ours in its place, refuses a field.
    Invalid,
    /// The user id is blank or longer than the provider takes.
    BadUserId,
    /// One row alone is larger than a request may be.
    RowTooLarge,
    /// The idempotency key was refused twice.
    KeyReused,
    /// A job with this row alone failed twice.
    JobFailed,
}

impl RejectReason {
    pub const ALL: [RejectReason; 6] = [
        RejectReason::NoAccount,
        RejectReason::Invalid,
        RejectReason::BadUserId,
        RejectReason::RowTooLarge,
        RejectReason::KeyReused,
        RejectReason::JobFailed,
    ];

    /// The metric label and header value.
    pub fn label(self) -> &'static str {
        match self {
            RejectReason::NoAccount => "no_account",
            RejectReason::Invalid => "invalid",
            RejectReason::BadUserId => "bad_user_id",
            RejectReason::RowTooLarge => "row_too_large",
            RejectReason::KeyReused => "key_reused",
            RejectReason::JobFailed => "job_failed",
        }
    }
}

/// Closed set of reasons why a provider counts as unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outage {
    Server,
    Timeout,
    Connect,
    Dns,
    Tls,
    Reset,
    /// A status or body that the API does not promise.
    Protocol,
    /// A page of something that stands before the API (proxy, firewall, load balancer), whatever its status.
    Edge,
    /// A success whose body is not the one that the API promises: the provider may have taken the rows.
    UnreadableSuccess,
    /// The provider forgot the job (404 on its status).
    JobLost,
}

impl Outage {
    pub const ALL: [Outage; 10] = [
        Outage::Server,
        Outage::Timeout,
        Outage::Connect,
        Outage::Dns,
        Outage::Tls,
        Outage::Reset,
        Outage::Protocol,
        Outage::Edge,
        Outage::UnreadableSuccess,
        Outage::JobLost,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Outage::Server => "server",
            Outage::Timeout => "timeout",
            Outage::Connect => "connect",
            Outage::Dns => "dns",
            Outage::Tls => "tls",
            Outage::Reset => "reset",
            Outage::Protocol => "protocol",
            Outage::Edge => "edge",
            Outage::UnreadableSuccess => "unreadable_success",
            Outage::JobLost => "job_lost",
        }
    }
}

/// Closed set of account faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccountFault {
    /// 401: the token is wrong.
    Unauthorized,
    /// 403: the token may not do this.
    Forbidden,
    /// 404 or 405 on a path that the API has: wrong host or region.
    WrongAddress,
    /// A redirect, which is never followed with a token.
    Redirected,
    /// The account blocks this message type (Vitally): a run of refusals from distinct users.
    Blocked,
}

impl AccountFault {
    pub const ALL: [AccountFault; 5] = [
        AccountFault::Unauthorized,
        AccountFault::Forbidden,
        AccountFault::WrongAddress,
        AccountFault::Redirected,
        AccountFault::Blocked,
    ];

    pub fn label(self) -> &'static str {
        match self {
            AccountFault::Unauthorized => "unauthorized",
            AccountFault::Forbidden => "forbidden",
            AccountFault::WrongAddress => "wrong_address",
            AccountFault::Redirected => "redirected",
            AccountFault::Blocked => "blocked",
        }
    }
}
