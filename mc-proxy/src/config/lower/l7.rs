//! What routes that terminate TLS have beyond the others.

use super::{
    super::{diagnostic::At, file::Given},
    Lower, file, is_set,
};
use crate::{desired::L7Policy, tls::ServerName};

impl Lower<'_, '_> {
    /// Whether they load is found out by whoever loads them.
    pub(super) fn require_certificate(&mut self, route: &file::Route, at: &At, path: &str) {
        for (key, given, example) in
            [("tls_cert", &route.tls_cert, "certs/app.pem"), ("tls_key", &route.tls_key, "certs/app.key")]
        {
            if given.as_ref().is_none_or(|given| given.value.is_empty()) {
                let text =
                    format!("{path}.{key} is required with mode = \"l7\"; write {key} = \"/srv/mc-proxy/{example}\"");
                self.report.error(at, text);
            }
        }
    }

    /// `backend_tls` is not among them: deploy agents send it with every route.
    pub(super) fn warn_of_l7_keys(&mut self, route: &file::Route, path: &str) {
        let origin = |given: &Option<Given<String>>| given.as_ref().map(|given| given.at.clone());
        let given = [
            ("tls_cert", origin(&route.tls_cert)),
            ("tls_key", origin(&route.tls_key)),
            ("backend_ca", origin(&route.backend_ca)),
            ("backend_server_name", origin(&route.backend_server_name)),
            ("backend_insecure", route.backend_insecure.as_ref().filter(|v| v.value).map(|given| given.at.clone())),
            ("l7_policies", route.l7_policies.as_ref().filter(|v| !v.value.is_empty()).map(|given| given.at.clone())),
        ];
        for (key, at) in given {
            if let Some(at) = at {
                self.report.warn(&at, format!("{path}.{key} has no effect on a route with mode \"l4\"; remove it"));
            }
        }
    }

    /// Nobody is to believe that a certificate is looked at where there is none.
    pub(super) fn warn_of_backend_tls_keys(&mut self, route: &file::Route, path: &str) {
        let origin = |given: &Option<Given<String>>| given.as_ref().map(|given| given.at.clone());
        let insecure = route.backend_insecure.as_ref().filter(|given| given.value);
        if let (Some(at), Some(_), true) = (origin(&route.backend_ca), insecure, is_set(&route.backend_tls)) {
            let text = format!("{path}.backend_ca has no effect with backend_insecure = true; remove one of the two");
            self.report.warn(&at, text);
        }
        if is_set(&route.backend_tls) {
            return;
        }
        let given = [
            ("backend_ca", origin(&route.backend_ca)),
            ("backend_server_name", origin(&route.backend_server_name)),
            ("backend_insecure", insecure.map(|given| given.at.clone())),
        ];
        for (key, at) in given {
            if let Some(at) = at {
                self.report.warn(&at, format!("{path}.{key} has no effect without backend_tls = true"));
            }
        }
    }

    /// An empty text is none.
    pub(super) fn backend_server_name(&mut self, given: Option<Given<String>>, path: &str) -> Option<ServerName> {
        let given = given.filter(|given| !given.value.is_empty())?;
        given
            .value
            .parse()
            .map_err(|error| {
                let remedy = "write the name in the backend's certificate, such as \"app.internal\"";
                let text = format!("{path}.backend_server_name: {:?}: {error}; {remedy}", given.value);
                self.report.error(&given.at, text);
            })
            .ok()
    }

    pub(super) fn policies(&mut self, given: Option<Given<Vec<Given<file::Policy>>>>, path: &str) -> Vec<L7Policy> {
        let mut policies = Vec::new();
        for Given { value: policy, at } in given.map(|given| given.value).unwrap_or_default() {
            let key = format!("{path}.l7_policies.type");
            let kind = self
                .required(policy.kind, &at, &key, "type = \"block_user_agent\" or \"require_header\"")
                .and_then(|kind| self.parse(&kind, &key));
            let key = format!("{path}.l7_policies.value");
            let shadow = is_set(&policy.shadow);
            let value = self.required(policy.value, &at, &key, "value = \"…\"");
            let Some((kind, Given { value, at })) = kind.zip(value) else { continue };
            let policy = L7Policy { kind, value, shadow };
            if let Some(problem) = policy.problem() {
                self.report.error(&at, format!("{key}: {problem}; write one such as \"X-Api-Key\""));
            }
            if let Some(doubt) = policy.doubt() {
                self.report.warn(&at, format!("{key}: {doubt}"));
            }
            policies.push(policy);
        }
        policies
    }
}
