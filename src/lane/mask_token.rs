//! Keeps a vendor's echo of the token out of dead letters, because gateways repeat what they refuse.

use secrecy::{ExposeSecret, SecretString};

use crate::kafka::settings::MASK;
use crate::verdict::{Answer, Rejection, Verdict};

/// Masks the token wherever the answer repeats a part of the reply: an error's code in a message, or a field.
pub(super) fn without_token(mut answer: Answer, token: &SecretString) -> Answer {
    let token = token.expose_secret();
    match &mut answer {
        Answer::All(verdict) => mask(verdict, token),
        Answer::PerRow(verdicts) => verdicts.iter_mut().for_each(|verdict| mask(verdict, token)),
        Answer::Pending { .. } => {}
    }
    answer
}

fn mask(verdict: &mut Verdict, token: &str) {
    let (Verdict::Rejected(rejection)
    | Verdict::Suspect(rejection)
    | Verdict::JobFailed(rejection)
    | Verdict::KeyReused(rejection)) = verdict
    else {
        return;
    };
    let Rejection { message, field, .. } = rejection;
    for text in [Some(message), field.as_mut()].into_iter().flatten().filter(|text| text.contains(token)) {
        *text = text.replace(token, MASK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::RejectReason;

    #[test]
    fn a_token_that_a_provider_repeats_as_code_or_field_is_masked_for_each_row() {
        let rejection = |code: &str, field: &str| Rejection {
            reason: RejectReason::Invalid,
            field: Some(field.to_owned()),
            status: Some(422),
            message: format!("vibefollow answered 422 {code}"),
        };
        let echoed = Verdict::Rejected(rejection("sk_MARKED", "headers.sk_MARKED"));
        let answer = Answer::PerRow(vec![Verdict::Delivered, echoed, Verdict::Rejected(rejection("invalid", "email"))]);
        let Answer::PerRow(verdicts) = without_token(answer, &SecretString::from("sk_MARKED")) else {
            panic!("another answer");
        };
        assert_eq!(verdicts[0], Verdict::Delivered);
        assert_eq!(verdicts[1], Verdict::Rejected(rejection("***", "headers.***")));
        assert_eq!(verdicts[2], Verdict::Rejected(rejection("invalid", "email")));
    }
}
