#include "app/table.h"

#include <gtest/gtest.h>

namespace peplos::app {
namespace {

TEST(Table, AlignsColumnsAndLeavesNoTrailingSpace) {
    Table table({"NAME", ">SIZE", "STATE"});
    table.add({"a", "1 GiB", "attached"});
    table.add({"longer", "20 GiB", "ok"});
    EXPECT_EQ(table.text(Style::plain),
              "NAME      SIZE  STATE\n"
              "a        1 GiB  attached\n"
              "longer  20 GiB  ok\n");
}

TEST(Table, ColoursDoNotCountAsWidth) {
    Table table({"A", "B"});
    table.add({paint("red", Colour::red, Style::colours), "x"});
    table.add({"green", "y"});
    std::string text = table.text(Style::colours);
    EXPECT_NE(text.find("\x1b[31mred\x1b[0m    x\n"), std::string::npos) << text;
    EXPECT_EQ(width_of("größe"), 5u);
}

TEST(Table, PlainStyleHasNoEscapes) {
    EXPECT_EQ(paint("x", Colour::red, Style::plain), "x");
    EXPECT_EQ(printable("a\x1b[31mb\n"), "a?[31mb?");
}

TEST(Bar, ShowsShares) {
    EXPECT_EQ(bar(0, 0, 10, Style::plain), "[----------] 0%");
    EXPECT_EQ(bar(1, 1000, 10, Style::plain), "[#---------] 0%");
    EXPECT_EQ(bar(5, 10, 10, Style::plain), "[#####-----] 50%");
    EXPECT_EQ(bar(11, 10, 10, Style::plain), "[##########] 100%");
    EXPECT_NE(bar(95, 100, 10, Style::colours).find("\x1b[31m"), std::string::npos);
}

}  // namespace
}  // namespace peplos::app
