#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// Text for people: aligned columns, colours only where a terminal shows them.
namespace peplos::app {

enum class Colour : uint8_t { none, green, yellow, red, dim, bold };

// Whether colours are written at all.
enum class Style : uint8_t { plain, colours };

// `text` in `colour`, or as it is in plain style.
std::string paint(std::string_view text, Colour colour, Style style);

// The columns that a terminal uses for UTF-8 text: one per code point, none for escape sequences.
size_t width_of(std::string_view text);

// Text from elsewhere made safe for a terminal: control characters become '?'.
std::string printable(std::string_view text);

// Columns are as wide as their widest cell, two spaces apart; the last one is not padded.
class Table {
  public:
    enum class Align : uint8_t { left, right };
    // A heading that begins with '>' aligns its column to the right.
    explicit Table(std::vector<std::string> headings);
    // Requires: one cell per heading. Cells may carry paint().
    void add(std::vector<std::string> cells);
    bool empty() const { return rows_.empty(); }
    std::string text(Style style) const;

  private:
    std::vector<std::string> headings_;
    std::vector<Align> aligns_;
    std::vector<std::vector<std::string>> rows_;
};

// "[######----] 58%": `part` of `whole`, `cells` wide; red from 90 %, yellow from 80 %.
std::string bar(uint64_t part, uint64_t whole, size_t cells, Style style);

}  // namespace peplos::app
