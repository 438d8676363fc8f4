//! Tables that are read as they are, and as Markdown.

/// A Markdown table with padded cells; the first row is its head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for (line, row) in rows.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            out += &format!("| {cell:width$} ");
        }
        out += "|\n";
        if line == 0 {
            for width in &widths {
                out += &format!("| {} ", "-".repeat((*width).max(3)));
            }
            out += "|\n";
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["peer".to_owned(), "a".to_owned()], vec!["x–y".to_owned(), "1234".to_owned()]];
        assert_eq!(table(&rows), "| peer | a    |\n| ---- | ---- |\n| x–y  | 1234 |\n");
    }
}
