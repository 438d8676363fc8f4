//! `mcproxyctl firewall export`.

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
};

use mc_proxy_proto::v1;
use serde_json::json;
use tempfile::NamedTempFile;

use super::{
    super::{
        CtlError,
        client::{Client, Pages},
        output::{Output, printable},
    },
    options::{self, ActionArgs, PlaceArgs},
};
use crate::{
    admin::action_to_proto,
    firewall::{Action, Group, RuleScope},
};

#[derive(Debug, clap::Args)]
pub(in crate::ctl) struct Export {
    /// File, replaced when all is written; stdout when absent.
    file: Option<PathBuf>,
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What a list has no words for.
#[derive(Default)]
struct Left {
    countries: u64,
    others: u64,
    ending: u64,
}

pub(super) async fn run(args: &Export, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let PlaceArgs { group, scope } = args.place;
    let action = args.action.action();
    let request = v1::ListFirewallRulesRequest { group: group.to_string(), ..v1::ListFirewallRulesRequest::default() };
    let mut pages = Pages::new(client.admin.list_firewall_rules(request)).await?;
    let mut file = args.file.as_deref().map(NewFile::create).transpose()?;
    let is_shown = file.is_none() && out.is_terminal();
    let mut left = Left::default();
    let mut written = 0_u64;
    let mut text = heading(group, action, scope);
    loop {
        match &mut file {
            Some(file) => file.write(&text)?,
            // With --json the list goes to a file, or nowhere.
            None => out.answer_part(String::new, || std::mem::take(&mut text))?,
        }
        text.clear();
        let Some(page) = pages.next().await? else { break };
        for rule in &page.rules {
            if rule.action() != action_to_proto(action) || rule.scope != scope.to_string() {
                left.others += 1;
            } else if rule.r#type() == v1::FirewallRuleType::Country {
                left.countries += 1;
            } else {
                left.ending += u64::from(rule.expires_at.is_some());
                written += 1;
                entry(&mut text, rule, is_shown);
            }
        }
    }
    if let Some(file) = file {
        file.keep()?;
    }
    if let Some(file) = &args.file {
        out.say(format_args!("{written} rules written to {}", file.display()));
    }
    left.say(action, scope, out);
    let Left { countries, others, ending } = left;
    out.answer(
        || json!({"group": group.as_str(), "written": written, "countries": countries, "others": others, "ending": ending}),
        String::new,
    )
}

fn heading(group: Group, action: Action, scope: RuleScope) -> String {
    let action = match action {
        Action::Block => "",
        Action::Allow => " --allow",
        Action::Count => " --count",
    };
    let scope = if scope == RuleScope::Default { String::new() } else { format!(" --scope {scope}") };
    format!(
        "# mc-proxy firewall group {group}, exported {}\n# mcproxyctl firewall import FILE --group {group}{action}{scope}\n",
        options::now()
    )
}

/// Writing to a `String` cannot fail, hence the discarded results.
fn entry(text: &mut String, rule: &v1::FirewallRule, is_shown: bool) {
    let _ = match rule.comment.as_str() {
        "" => writeln!(text, "{}", rule.value),
        comment if is_shown => writeln!(text, "{} # {}", rule.value, printable(comment)),
        comment => writeln!(text, "{} # {comment}", rule.value),
    };
}

impl Left {
    fn say(&self, action: Action, scope: RuleScope, out: &mut Output<'_>) {
        if self.others > 0 {
            out.say(format_args!(
                "{} rules are left out: their action is not {action} or their scope not {scope} (--allow, --count, --scope)",
                self.others
            ));
        }
        if self.countries > 0 {
            out.say(format_args!("{} countries are left out: a list has addresses only", self.countries));
        }
        if self.ending > 0 {
            out.say(format_args!("{} rules have an end, which a list cannot say", self.ending));
        }
    }
}

/// A file that is there as a whole or not at all.
struct NewFile<'p> {
    path: &'p Path,
    file: NamedTempFile,
}

impl<'p> NewFile<'p> {
    fn create(path: &'p Path) -> Result<Self, CtlError> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let file = NamedTempFile::new_in(dir).map_err(|source| CtlError::File { path: path.to_owned(), source })?;
        Ok(Self { path, file })
    }

    fn write(&mut self, text: &str) -> Result<(), CtlError> {
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|source| CtlError::File { path: self.path.to_owned(), source })
    }

    fn keep(self) -> Result<(), CtlError> {
        let Self { path, file } = self;
        file.persist(path).map_err(|error| CtlError::File { path: path.to_owned(), source: error.error })?;
        Ok(())
    }
}
