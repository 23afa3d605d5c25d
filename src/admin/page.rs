//! `/status` for people: the same report as a page without scripts.

use std::fmt::Write;

use serde_json::Value;

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}\
    table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .8rem .2rem 0;text-align:left;\
    vertical-align:top}th{border-bottom:1px solid #999}td.n{text-align:right;font-variant-numeric:tabular-nums}\
    .stopped{color:#b00}.recovering,.waiting{color:#a60}.hint{color:#555}";

/// Text as it may stand in a page, in an attribute too.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// A value of the report as escaped text; a dash if it is not known.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => escaped(text),
        other => escaped(&other.to_string()),
    }
}

/// The page of a report.
pub fn html(report: &Value) -> String {
    let mut out = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    let group = shown(&report["group"]);
    // Writing to a text cannot fail.
    let written = write_page(&mut out, report, &group);
    debug_assert!(written.is_ok());
    out
}

fn write_page(out: &mut String, report: &Value, group: &str) -> std::fmt::Result {
    write!(out, "<title>{group}: sidestream</title><style>{STYLE}</style></head><body>")?;
    write!(out, "<h1>{group}</h1><p>sidestream {}, ", shown(&report["version"]))?;
    write!(out, "started {}, ", shown(&report["started"]))?;
    write!(out, "{} partitions, ", shown(&report["partitionsOwned"]))?;
    write!(out, "<b>{}</b></p>", if report["ready"] == true { "ready" } else { "not ready" })?;
    let reasons = report["reasons"].as_array().map_or(&[][..], Vec::as_slice);
    for reason in reasons {
        write!(out, "<p class=\"stopped\">{}</p>", shown(reason))?;
    }
    out.push_str(
        "<table><tr><th>route<th>state<th>records/s<th>settled<th>bad<th>dropped<th>in flight<th>lag<th>last error</tr>",
    );
    for (name, route) in report["routes"].as_object().into_iter().flatten() {
        write_route(out, name, route)?;
    }
    out.push_str("</table>");
    if let Some(count) = report.get("routesNotShown") {
        write!(out, "<p>{} more</p>", shown(count))?;
    }
    for (name, route) in report["routes"].as_object().into_iter().flatten() {
        write_sinks(out, name, route)?;
    }
    out.push_str(
        "<p class=\"hint\">As JSON: <code>curl …/status</code>, with <code>?route=…</code> for all \
        partitions of one. Also <a href=\"/metrics\">/metrics</a>, <a href=\"/health\">/health</a>, \
        <a href=\"/ready\">/ready</a>.</p></body></html>",
    );
    Ok(())
}

fn write_route(out: &mut String, name: &str, route: &Value) -> std::fmt::Result {
    let state = shown(&route["state"]);
    let records = &route["records"];
    let bad: u64 = records["bad"].as_object().into_iter().flatten().filter_map(|(_, bad)| bad.as_u64()).sum();
    write!(out, "<tr><td>{}<td class=\"{state}\">{state}", escaped(name))?;
    for reason in route["paused"].as_array().into_iter().flatten() {
        write!(out, "<br><span class=\"hint\">{}</span>", shown(reason))?;
    }
    for number in [
        shown(&route["recordsPerSecond"]["read"]),
        shown(&records["settled"]),
        bad.to_string(),
        shown(&records["dropped"]),
        shown(&records["inFlight"]),
        shown(&route["lag"]),
    ] {
        write!(out, "<td class=\"n\">{number}")?;
    }
    match &route["lastError"] {
        Value::Null => out.push_str("<td>"),
        error => {
            write!(
                out,
                "<td>{} <span class=\"hint\">{}</span>",
                shown(&error["message"]),
                shown(&error["time"])
            )?;
            if let Some(hint) = error["hint"].as_str() {
                write!(out, "<br><span class=\"hint\">hint: {}</span>", escaped(hint))?;
            }
        }
    }
    out.push_str("</tr>");
    Ok(())
}

fn write_sinks(out: &mut String, name: &str, route: &Value) -> std::fmt::Result {
    write!(
        out,
        "<h2>{}</h2><table><tr><th>sink<th>rows<th>files<th>bytes<th>last flush</tr>",
        escaped(name)
    )?;
    for (sink, settled) in route["sinks"].as_object().into_iter().flatten() {
        write!(out, "<tr><td>{}", escaped(sink))?;
        for field in ["rows", "files", "bytes", "lastFlush"] {
            write!(out, "<td class=\"n\">{}", shown(&settled[field]))?;
        }
        out.push_str("</tr>");
    }
    out.push_str("</table><table><tr><th>partition<th>durable<th>end<th>lag</tr>");
    for (partition, standing) in route["partitions"].as_object().into_iter().flatten() {
        write!(out, "<tr><td>{}", escaped(partition))?;
        for field in ["durable", "end", "lag"] {
            write!(out, "<td class=\"n\">{}", shown(&standing[field]))?;
        }
        out.push_str("</tr>");
    }
    out.push_str("</table>");
    if let Some(count) = route.get("partitionsNotShown") {
        write!(out, "<p>{} more</p>", shown(count))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_comes_from_elsewhere_is_text_and_nothing_else() {
        let hostile = "<script>alert(\"x\")</script>'&";
        let page = html(&json!({
            "group": hostile,
            "ready": false,
            "reasons": [hostile],
            "routes": {hostile: {
                "state": "stopped",
                "paused": [hostile],
                "lastError": {"message": hostile, "hint": hostile, "time": "now"},
                "records": {"bad": {"framing": 2, "size": 3}},
                "sinks": {hostile: {"rows": 1}},
                "partitions": {hostile: {"lag": 7}},
            }},
        }));
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&#39;&amp;").count(), 10);
        for expected in
            ["<td class=\"stopped\">stopped", "<td class=\"n\">5", "<td class=\"n\">7", "not ready"]
        {
            assert!(page.contains(expected), "no {expected:?} in\n{page}");
        }
    }
}
