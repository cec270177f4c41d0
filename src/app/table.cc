#include "app/table.h"

#include <algorithm>
#include <fmt/format.h>

#include "base/check.h"

namespace peplos::app {

std::string paint(std::string_view text, Colour colour, Style style) {
    if (style == Style::plain || colour == Colour::none || text.empty()) return std::string(text);
    std::string_view code;
    switch (colour) {
        case Colour::none:
            break;
        case Colour::green:
            code = "32";
            break;
        case Colour::yellow:
            code = "33";
            break;
        case Colour::red:
            code = "31";
            break;
        case Colour::dim:
            code = "2";
            break;
        case Colour::bold:
            code = "1";
            break;
    }
    return fmt::format("\x1b[{}m{}\x1b[0m", code, text);
}

size_t width_of(std::string_view text) {
    size_t width = 0;
    bool escape = false;
    for (char c : text) {
        if (escape) {
            escape = c != 'm';
        } else if (c == '\x1b') {
            escape = true;
        } else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) {
            ++width;  // not a continuation byte of UTF-8
        }
    }
    return width;
}

std::string printable(std::string_view text) {
    std::string out(text);
    for (char& c : out) {
        auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte == 0x7f) c = '?';
    }
    return out;
}

Table::Table(std::vector<std::string> headings) : headings_(std::move(headings)) {
    for (std::string& heading : headings_) {
        bool right = heading.starts_with('>');
        if (right) heading.erase(0, 1);
        aligns_.push_back(right ? Align::right : Align::left);
    }
}

void Table::add(std::vector<std::string> cells) {
    CHECK(cells.size() == headings_.size(), "{} cells for {} headings", cells.size(),
          headings_.size());
    rows_.push_back(std::move(cells));
}

std::string Table::text(Style style) const {
    std::vector<size_t> widths;
    for (size_t column = 0; column < headings_.size(); ++column) {
        size_t width = width_of(headings_[column]);
        for (const auto& row : rows_)
            width = std::max(width, width_of(row[column]));
        widths.push_back(width);
    }
    std::string out;
    auto line = [&](const std::vector<std::string>& cells, Colour colour) {
        for (size_t column = 0; column < cells.size(); ++column) {
            std::string pad(widths[column] - width_of(cells[column]), ' ');
            bool last = column + 1 == cells.size();
            if (aligns_[column] == Align::right) out += pad;
            out += paint(cells[column], colour, style);
            if (aligns_[column] == Align::left && !last) out += pad;
            out += last ? "\n" : "  ";
        }
    };
    line(headings_, Colour::dim);
    for (const auto& row : rows_)
        line(row, Colour::none);
    return out;
}

std::string bar(uint64_t part, uint64_t whole, size_t cells, Style style) {
    part = std::min(part, whole);
    double share = whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
    // Nothing that is used looks empty, nothing that is free looks full.
    size_t filled = static_cast<size_t>(share * static_cast<double>(cells));
    if (part != 0 && filled == 0) filled = 1;
    Colour colour = share >= 0.9 ? Colour::red : share >= 0.8 ? Colour::yellow : Colour::green;
    return fmt::format("[{}{}] {:.0f}%", paint(std::string(filled, '#'), colour, style),
                       std::string(cells - filled, '-'), share * 100);
}

}  // namespace peplos::app
