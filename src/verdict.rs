//! The meaning of a reply for one row (`Verdict`) and for one request (`Answer`), all that providers say to the engine.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

/// A row in the provider's own bytes, ready to be put into a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedRow {
    /// The row as it is in the request: a JSON object.
    pub body: Bytes,
    /// The identity of this content and version. A single request uses it as its idempotency key, and the key of a batch is
    /// made from the identities of its rows.
    pub identity: Uuid,
}

/// The meaning of a reply for one row. `engine::answers` acts on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The provider took the row.
    Delivered,
    /// The provider refuses this row, whatever else it takes. The row becomes a dead letter.
    Rejected(Rejection),
    /// A refusal that may also mean that the account refuses every row (Vitally's 400). The rows of other users decide which it
    /// is.
    Suspect(Rejection),
    /// The provider refused the request as a whole without naming a row. The lane halves it, down to single rows.
    Split,
    /// The provider asks to wait. `None` if it gives no time.
    Throttled { retry_after: Option<Duration> },
    /// The outcome is unknown or the provider fails. The lane backs off as a whole and then sends again.
    Unavailable(Outage),
    /// The token, the address or the account is wrong. No row gets through until an operator fixes it.
    AccountFault(AccountFault),
    /// Another job runs, and the provider takes one at a time. The lane waits, and the attempts of its rows do not change.
    Busy { retry_after: Option<Duration> },
    /// A job failed without naming a row. The lane sends its rows in smaller requests and then alone, until each row passes or
    /// is to blame.
    JobFailed(Rejection),
    /// The provider has seen the idempotency key with other bytes. The lane sends the row once more under a new key. If the
    /// provider refuses that too, the row becomes a dead letter.
    KeyReused(Rejection),
    /// The connection closed and declared the request untouched. The lane sends the row again at once, and the limit does not
    /// count it.
    Untouched,
}

/// The meaning of one reply for the rows of its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The same verdict for each row.
    All(Verdict),
    /// One verdict per row, in the order sent, and as many as there are rows.
    PerRow(Vec<Verdict>),
    /// The rows became a job, or the job still runs. The lane asks again after `poll_after`, and the rows stay in flight.
    Pending { job: JobId, poll_after: Duration },
}

/// The provider's opaque name of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobId(pub String);

/// The reason for which a row is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: RejectReason,
    /// The field that the provider or the preflight names; a key, never a value.
    pub field: Option<String>,
    /// The HTTP status; `None` if no request was made.
    pub status: Option<u16>,
    /// A short text without personal data for the dead letter's header.
    pub message: String,
}

impl Rejection {
    /// Returns a refusal by the local preflight, which made no request and used nothing of the limit.
    pub fn local(reason: RejectReason, field: Option<&str>, message: impl Into<String>) -> Self {
        Rejection { reason, field: field.map(str::to_owned), status: None, message: message.into() }
    }
}

/// The closed set of reasons for a refused row. Their labels are metric labels and dead-letter headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Vitally needs an account or an organization, and neither is known.
    NoAccount,
    /// The provider's validation, or this worker's in its place, refuses a field.
    Invalid,
    /// The user id is blank or longer than the provider takes.
    BadUserId,
    /// One row alone is larger than a request may be.
    RowTooLarge,
    /// The provider refused the idempotency key twice.
    KeyReused,
    /// Jobs with this row failed until the row was to blame.
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

    /// Returns the metric label, which is also the header's value.
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

/// The closed set of reasons for which a provider counts as unavailable.
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
    /// A page of a proxy, a firewall or a load balancer in front of the API, whatever its status.
    Edge,
    /// A success whose body is not the one that the API promises. The provider may have taken the rows.
    UnreadableSuccess,
    /// The provider no longer knows the job (404 on its status), or the job missed its deadline or counted fewer rows than were
    /// sent.
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

/// The closed set of account faults.
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
    /// The account blocks this message type (Vitally), as a run of refusals from distinct users shows.
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
