//! The program's side: its routes file, and whether the table it printed accounts for every record.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};

use crate::shapes::{SHAPES, Shape};

/// What the routes do.
#[derive(Debug, Clone, Copy)]
pub enum Job {
    /// One Parquet sink each.
    Parquet,
    /// The same, and a view with a Parquet sink of its own.
    Views,
    /// One sink of JSON Lines each.
    Jsonl,
    /// As the first, of topics with bad records, which become dead letters.
    Bad,
}

impl Job {
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "Parquet",
            Self::Views => "Parquet, and a view of every other record",
            Self::Jsonl => "JSON Lines",
            Self::Bad => "Parquet, of topics with bad records",
        }
    }

    /// The keys of a route that are its own.
    fn sinks(self, shape: &Shape) -> String {
        let Shape { name, view, .. } = shape;
        match self {
            Self::Parquet => format!("    sinks: {{archive: {{parquet: {{path: out/{name}}}}}}}\n"),
            Self::Jsonl => format!("    sinks: {{archive: {{jsonl: {{path: out/{name}}}}}}}\n"),
            Self::Bad => format!(
                "    bad_records: {{dead_letter: quarantine}}\n    \
                 sinks: {{archive: {{parquet: {{path: out/{name}}}}}}}\n"
            ),
            Self::Views => format!(
                "    views:\n      half: |\n        {view}\n    sinks:\n\
                 \x20     archive: {{parquet: {{path: out/{name}}}}}\n\
                 \x20     half: {{from: half, parquet: {{path: out/{name}-half}}}}\n"
            ),
        }
    }

    /// The rows that each of its sinks gets.
    fn rows(self, records: i64, bad: i64) -> Vec<(&'static str, i64)> {
        match self {
            Self::Parquet | Self::Jsonl => vec![("archive", records)],
            Self::Bad => vec![("archive", records - bad), ("dead_letter/quarantine", bad)],
            Self::Views => vec![("archive", records), ("half", records / 2)],
        }
    }

    /// The main job: a route for each topic, and all else as it is by default.
    pub fn routes(self, head: &str, topic_of: impl Fn(&str) -> String) -> String {
        let mut text = match self {
            Self::Bad => {
                let letters = "dead_letters: {quarantine: {jsonl: {path: out/dead-letters}}}";
                head.replace("routes:\n", &format!("{letters}\nroutes:\n"))
            }
            Self::Parquet | Self::Views | Self::Jsonl => head.to_owned(),
        };
        for shape in &SHAPES {
            push_route(&mut text, shape.name, &topic_of(shape.name), &self.sinks(shape));
        }
        text
    }

    /// Each record of each topic was read, so many were bad, and all rows are in the sinks.
    pub fn audit(self, table: &str, records: i64, bad: i64) -> anyhow::Result<()> {
        let found = read_table(table)?;
        for shape in &SHAPES {
            for (sink, rows) in self.rows(records, bad) {
                let expected = [records, bad, 0, rows].map(|number| number.to_string());
                let is_there = found.get(&(shape.name, sink)).is_some_and(|cells| *cells == expected);
                ensure!(is_there, "expected {expected:?} for {}/{sink} in:\n{table}", shape.name);
            }
        }
        Ok(())
    }
}

/// Files that come into sight as soon as they can.
pub fn eager_routes(head: &str, shape: &Shape, topic: &str, path: &str) -> String {
    let mut text = head.to_owned();
    let sink = format!("{{parquet: {{path: {path}, roll: {{max_age: 100ms}}}}}}");
    let keys = format!("    batch: {{max_age: 100ms}}\n    sinks: {{archive: {sink}}}\n");
    push_route(&mut text, shape.name, topic, &keys);
    text
}

/// Orders into a table that is created.
pub fn table_routes(head: &str, topic: &str, url: &str) -> String {
    let mut text = head.to_owned();
    let sink = format!("{{postgres: {{url: \"{url}\", table: orders, create: true}}}}");
    push_route(&mut text, "orders", topic, &format!("    sinks: {{table: {sink}}}\n"));
    text
}

/// All of a routes file above its routes.
pub fn head(bootstrap: &str, registry: &str, group: &str) -> String {
    format!(
        "version: 1\nkafka: {{bootstrap.servers: \"{bootstrap}\", group.id: {group}}}\n\
         schema_registry: {{url: \"{registry}\"}}\nroutes:\n"
    )
}

fn push_route(text: &mut String, name: &str, topic: &str, keys: &str) {
    text.push_str(&format!("  {name}:\n    topics: [{topic}]\n    start: earliest\n{keys}"));
}

/// Records, bad, dropped and rows of each route and sink.
fn read_table(table: &str) -> anyhow::Result<BTreeMap<(&str, &str), [String; 4]>> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let names = lines.find(|cells| cells.first() == Some(&"route"));
    let names = names.with_context(|| format!("the program printed no table:\n{table}"))?;
    let mut found = BTreeMap::new();
    let mut above: Vec<&str> = Vec::new();
    for cells in lines.take_while(|cells| !cells.is_empty()) {
        // A line for another sink of the same route begins with the sink.
        let missing = names.len().saturating_sub(cells.len());
        let line: Vec<&str> = above.iter().take(missing).copied().chain(cells).collect();
        let cell = |name: &str| {
            let at = names.iter().position(|found| *found == name);
            at.and_then(|at| line.get(at)).copied().unwrap_or_default()
        };
        let numbers = ["records", "bad", "dropped", "rows"].map(|name| cell(name).to_owned());
        found.insert((cell("route"), cell("sink")), numbers);
        above = line;
    }
    Ok(found)
}
