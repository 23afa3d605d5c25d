//! Looks at a view's SQL before it is planned: only queries, and `*` means the decoded fields.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, ExcludeSelectItem, Expr, Ident, ObjectName, Query, Select, SelectFlavor, SelectItem, TableFactor,
    Visit, VisitMut, Visitor, VisitorMut, WildcardAdditionalOptions,
};

use super::BATCH;

/// The `_` columns that `query` names anywhere.
pub fn named_meta(query: &Query, meta: &[&str]) -> BTreeSet<String> {
    struct Names<'a> {
        meta: &'a [&'a str],
        found: BTreeSet<String>,
    }
    impl Visitor for Names<'_> {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let ident = match expr {
                Expr::Identifier(ident) => Some(ident),
                Expr::CompoundIdentifier(parts) => {
                    for part in parts {
                        self.see(part);
                    }
                    None
                }
                Expr::CompoundFieldAccess { .. } => None,
                _ => None,
            };
            if let Some(ident) = ident {
                self.see(ident);
            }
            ControlFlow::Continue(())
        }
    }
    impl Names<'_> {
        fn see(&mut self, ident: &Ident) {
            let name = match ident.quote_style {
                Some(_) => ident.value.clone(),
                None => ident.value.to_ascii_lowercase(),
            };
            if self.meta.contains(&name.as_str()) {
                self.found.insert(name);
            }
        }
    }
    let mut names = Names { meta, found: BTreeSet::new() };
    match query.visit(&mut names) {
        ControlFlow::Continue(()) | ControlFlow::Break(()) => names.found,
    }
}

/// Makes `*` over `batch` leave out `hidden` columns.
///
/// # Errors
/// A form of `*` for which that cannot be done.
pub fn hide(query: &mut Query, hidden: &[String]) -> Result<(), String> {
    let mut hide = Hide {
        hidden: hidden.iter().map(|name| ObjectName::from(Ident::with_quote('"', name.as_str()))).collect(),
    };
    match VisitMut::visit(query, &mut hide) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(message) => Err(message),
    }
}

struct Hide {
    hidden: Vec<ObjectName>,
}

impl VisitorMut for Hide {
    type Break = String;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<String> {
        if query.pipe_operators.is_empty() {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break("`|>` is not supported; write the steps as views over one another".to_owned())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<String> {
        if !matches!(select.flavor, SelectFlavor::Standard) {
            return ControlFlow::Break("`FROM` before `SELECT` is not supported".to_owned());
        }
        let over_batch: Vec<bool> = select
            .from
            .iter()
            .flat_map(|from| {
                let joined = from.joins.iter().map(|join| is_batch(&join.relation));
                std::iter::once(is_batch(&from.relation)).chain(joined)
            })
            .collect();
        if self.hidden.is_empty() || !over_batch.contains(&true) {
            return ControlFlow::Continue(());
        }
        for item in &mut select.projection {
            let options = match item {
                SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) => options,
                _ => continue,
            };
            if over_batch.len() > 1 {
                return ControlFlow::Break(
                    "`*` over `batch` and another table: name the columns, because `_` columns are used too"
                        .to_owned(),
                );
            }
            if let Err(message) = self.exclude(options) {
                return ControlFlow::Break(message);
            }
        }
        ControlFlow::Continue(())
    }
}

impl Hide {
    fn exclude(&self, options: &mut WildcardAdditionalOptions) -> Result<(), String> {
        if options.opt_except.is_some() {
            return Err("write `* EXCLUDE (…)` instead of `* EXCEPT (…)`".to_owned());
        }
        let mut all = match options.opt_exclude.take() {
            None => Vec::new(),
            Some(ExcludeSelectItem::Single(name)) => vec![name],
            Some(ExcludeSelectItem::Multiple(names)) => names,
        };
        for name in &self.hidden {
            let is_there = all
                .iter()
                .any(|other| other.to_string().trim_matches('"') == name.to_string().trim_matches('"'));
            if !is_there {
                all.push(name.clone());
            }
        }
        options.opt_exclude = Some(ExcludeSelectItem::Multiple(all));
        Ok(())
    }
}

fn is_batch(factor: &TableFactor) -> bool {
    let TableFactor::Table { name, .. } = factor else {
        return false;
    };
    let [ast::ObjectNamePart::Identifier(ident)] = name.0.as_slice() else {
        return false;
    };
    match ident.quote_style {
        Some(_) => ident.value == BATCH,
        None => ident.value.eq_ignore_ascii_case(BATCH),
    }
}
