//! Certificates: files, names and dates, and nothing of their keys.

use std::time::SystemTime;

use mc_proxy_proto::v1;

use crate::{
    control::ListedCertificate,
    tls::certs::{Figures, Reloaded},
};

pub(in crate::admin) fn certificates_to_proto(listed: Vec<ListedCertificate>) -> v1::ListCertificatesResponse {
    let now = SystemTime::now();
    v1::ListCertificatesResponse { certificates: listed.into_iter().map(|one| certificate(one, now)).collect() }
}

fn certificate(listed: ListedCertificate, now: SystemTime) -> v1::Certificate {
    let ListedCertificate { status, routes } = listed;
    let known = status.leaf.map(|leaf| v1::Certificate {
        days_left: leaf.days_left(now),
        names: leaf.names,
        not_before: Some(leaf.not_before.into()),
        not_after: Some(leaf.not_after.into()),
        issuer: leaf.issuer,
        serial: leaf.serial,
        ..v1::Certificate::default()
    });
    v1::Certificate {
        tls_cert: status.files.cert.display().to_string(),
        tls_key: status.files.key.display().to_string(),
        loaded_at: status.loaded_at.map(Into::into),
        routes: routes.into_iter().map(|(listener_addr, route)| v1::CertificateUse { listener_addr, route }).collect(),
        last_error: status.error.unwrap_or_default(),
        ..known.unwrap_or_default()
    }
}

pub(in crate::admin) fn reloaded_to_proto(reloaded: Reloaded) -> v1::ReloadCertificatesResponse {
    let Reloaded { replaced, unchanged, failed } = reloaded;
    let failed = failed.into_iter();
    let failed = failed.map(|(file, error)| v1::CertificateFailure { tls_cert: file.display().to_string(), error });
    v1::ReloadCertificatesResponse { replaced, unchanged, failed: failed.collect() }
}

pub(super) fn figures_to_proto(figures: Figures) -> v1::CertificateStatus {
    v1::CertificateStatus {
        count: figures.count,
        failing: figures.failing,
        earliest_expiry: figures.earliest_expiry.map(Into::into),
        load_failures: figures.failures,
    }
}
