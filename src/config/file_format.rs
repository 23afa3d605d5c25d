//! How the bytes of a sink's files are made: `compression:`, and what Parquet has besides.

use std::collections::BTreeMap;

use super::Problem;
use super::keys;
use super::mapping::{Context, Mapping};
use super::plan::{ParquetColumn, ParquetCompression, ParquetOptions, Statistics, TextCompression};

const GZIP: Levels = Levels { max: 9, default: 6 };

/// Pages are compressed one by one: what a level takes lasts for one page.
const ZSTD_OF_PAGES: Levels = Levels { max: 22, default: 3 };

/// A file of text is compressed as a whole, by what is there as long as it is open. Higher levels take more than 100 MiB
/// for each.
const ZSTD_OF_FILES: Levels = Levels { max: 9, default: 3 };

/// What `compression_level` may be, from 1.
struct Levels {
    max: u8,
    default: u8,
}

/// Reads `compression:` of files of text.
pub fn text(files: &Mapping<'_>, context: &mut Context<'_>) -> Option<TextCompression> {
    let codec = files.choice("compression", context);
    Some(match codec.as_str() {
        "gzip" => TextCompression::Gzip(level(&codec, &GZIP, files, context)?.into()),
        "zstd" => TextCompression::Zstd(level(&codec, &ZSTD_OF_FILES, files, context)?.into()),
        _ => {
            refuse_level(&codec, files, context);
            TextCompression::None
        }
    })
}

/// Reads what `parquet:` says besides where files are.
pub fn parquet(files: &Mapping<'_>, context: &mut Context<'_>) -> Option<ParquetOptions> {
    let compression = parquet_compression(files, context);
    let row_group = files.nested("row_group", &keys::ROW_GROUP, context);
    let group_rows_max = row_group.and_then(|group| group.integer("max_rows", context));
    let has_dictionary = files.choice("dictionary", context) == "true";
    let statistics = statistics(files, context);
    let mut columns = BTreeMap::new();
    for (key, node) in files.named("columns", context) {
        if let Some(column) = Mapping::open(node, &keys::PARQUET_COLUMN, context) {
            columns.insert(key.name.clone(), parquet_column(&column, context));
        }
    }
    Some(ParquetOptions {
        compression: compression?,
        group_rows_max: usize::try_from(group_rows_max?).ok()?,
        has_dictionary,
        statistics,
        columns,
    })
}

/// Parquet files of dead letters: what is not asked for is as in other files.
pub fn parquet_of_letters(files: &Mapping<'_>, context: &mut Context<'_>) -> Option<ParquetOptions> {
    Some(ParquetOptions {
        compression: parquet_compression(files, context)?,
        group_rows_max: 1 << 20,
        has_dictionary: true,
        statistics: Statistics::Page,
        columns: BTreeMap::new(),
    })
}

fn parquet_compression(files: &Mapping<'_>, context: &mut Context<'_>) -> Option<ParquetCompression> {
    let codec = files.choice("compression", context);
    let without_levels = match codec.as_str() {
        "gzip" => return Some(ParquetCompression::Gzip(level(&codec, &GZIP, files, context)?.into())),
        "zstd" => {
            return Some(ParquetCompression::Zstd(level(&codec, &ZSTD_OF_PAGES, files, context)?.into()));
        }
        "lz4" => ParquetCompression::Lz4,
        "none" => ParquetCompression::None,
        _ => ParquetCompression::Snappy,
    };
    refuse_level(&codec, files, context);
    Some(without_levels)
}

fn parquet_column(column: &Mapping<'_>, context: &mut Context<'_>) -> ParquetColumn {
    let has_dictionary = column.get("dictionary").map(|_| column.choice("dictionary", context) == "true");
    let statistics = column.get("statistics").map(|_| statistics(column, context));
    let has_bloom_filter = column.choice("bloom_filter", context) == "true";
    ParquetColumn { has_dictionary, statistics, has_bloom_filter }
}

fn statistics(mapping: &Mapping<'_>, context: &mut Context<'_>) -> Statistics {
    match mapping.choice("statistics", context).as_str() {
        "none" => Statistics::None,
        "group" => Statistics::Group,
        _ => Statistics::Page,
    }
}

/// The level that is given, or the one the codec takes by itself.
fn level(codec: &str, levels: &Levels, files: &Mapping<'_>, context: &mut Context<'_>) -> Option<u8> {
    let Some(node) = files.get("compression_level") else {
        return Some(levels.default);
    };
    let given = files.integer("compression_level", context)?;
    let level = u8::try_from(given).ok().filter(|level| *level <= levels.max);
    if level.is_none() {
        context
            .problem(node.span, format!("`compression: {codec}` has levels from 1 to {} here", levels.max));
    }
    level
}

fn refuse_level(codec: &str, files: &Mapping<'_>, context: &mut Context<'_>) {
    if files.get("compression_level").is_some() {
        let message = format!("`compression: {codec}` has no levels");
        let problem = Problem::new(files.place("compression_level"), message);
        context.problems.push(problem.hint("leave `compression_level` out, or choose `zstd` or `gzip`"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::plan::{FileFormat, Target};
    use crate::config::{Environment, read, render};

    fn text_of(sink: &str) -> String {
        format!(
            "version: 1\nkafka: {{bootstrap.servers: b, group.id: g}}\nroutes:\n  \
             r: {{topics: [t], value: string, sinks: {{s: {{{sink}}}}}}}\n"
        )
    }

    fn format(sink: &str) -> FileFormat {
        let plan = read(&text_of(sink), &Environment::new([], Path::new("."))).unwrap();
        match plan.routes[0].sinks[0].target.clone() {
            Target::Files { format, .. } => format,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn text_is_compressed_if_the_file_says_so() {
        for (options, expected) in [
            ("", TextCompression::None),
            (", compression: gzip", TextCompression::Gzip(6)),
            (", compression: gzip, compression_level: 9", TextCompression::Gzip(9)),
            (", compression: zstd", TextCompression::Zstd(3)),
            (", compression: zstd, compression_level: 1", TextCompression::Zstd(1)),
        ] {
            assert_eq!(format(&format!("jsonl: {{path: out{options}}}")), FileFormat::JsonLines(expected));
            assert_eq!(format(&format!("csv: {{path: out{options}}}")), FileFormat::Csv(expected));
        }
    }

    #[test]
    fn parquet_has_options_for_all_columns_and_for_one() {
        let FileFormat::Parquet(default) = format("parquet: {path: out}") else { panic!() };
        let expected = ParquetOptions {
            compression: ParquetCompression::Snappy,
            group_rows_max: 1 << 20,
            has_dictionary: true,
            statistics: Statistics::Page,
            columns: BTreeMap::new(),
        };
        assert_eq!(default, expected);
        let given = "parquet: {path: out, compression: zstd, compression_level: 19, row_group: {max_rows: 1000}, \
                     dictionary: false, statistics: group, \
                     columns: {id: {bloom_filter: true}, body: {statistics: none, dictionary: true}}}";
        let FileFormat::Parquet(given) = format(given) else { panic!() };
        let id = ParquetColumn { has_dictionary: None, statistics: None, has_bloom_filter: true };
        let body = ParquetColumn {
            has_dictionary: Some(true),
            statistics: Some(Statistics::None),
            has_bloom_filter: false,
        };
        let expected = ParquetOptions {
            compression: ParquetCompression::Zstd(19),
            group_rows_max: 1000,
            has_dictionary: false,
            statistics: Statistics::Group,
            columns: BTreeMap::from([("id".to_owned(), id), ("body".to_owned(), body)]),
        };
        assert_eq!(given, expected);
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        for (sink, expected) in [
            ("csv: {path: out, compression_level: 3}", "`compression: none` has no levels"),
            ("csv: {path: out, compression: snappy}", "`snappy` is not a known value here"),
            ("csv: {path: out, row_group: {max_rows: 3}}", "`row_group` is not a known key here"),
            ("jsonl: {path: out, compression: zstd, compression_level: 19}", "has levels from 1 to 9 here"),
            ("parquet: {path: out, compression_level: 3}", "`compression: snappy` has no levels"),
            (
                "parquet: {path: out, compression: lz4, compression_level: 3}",
                "`compression: lz4` has no levels",
            ),
            (
                "parquet: {path: out, compression: zstd, compression_level: 23}",
                "has levels from 1 to 22 here",
            ),
            (
                "parquet: {path: out, compression: gzip, compression_level: 300}",
                "has levels from 1 to 9 here",
            ),
            ("parquet: {path: out, compression: zstd, compression_level: 0}", "not a whole number from 1"),
            ("parquet: {path: out, row_group: {max_rows: 0}}", "not a whole number from 1"),
            ("parquet: {path: out, columns: {id: {bloom: true}}}", "`bloom` is not a known key here"),
            ("parquet: {path: out, columns: {id: {statistics: all}}}", "`all` is not a known value here"),
            ("parquet: {path: out, columns: [id]}", "expected names and values"),
        ] {
            let text = text_of(sink);
            let problems = read(&text, &Environment::new([], Path::new("."))).unwrap_err();
            let shown = render("r", &text, &problems);
            assert!(shown.contains(expected), "no {expected:?} in\n{shown}");
            assert_eq!(shown.matches("r:4:").count(), 1, "{shown}");
        }
    }
}
