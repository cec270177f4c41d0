#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "app/table.h"

// The REST API's answers as people read them. Members that are missing show as "-": a newer or
// older daemon must not stop `status`. Pure functions.
namespace peplos::app {

using Json = nlohmann::json;

// One screen: health sentence with the next action, capacity, node, devices, volumes.
std::string show_status(const Json& status, const Json& volumes, Style style);
std::string show_volumes(const Json& volumes, Style style);
std::string show_volume(const Json& volume, Style style);
std::string show_devices(const Json& devices, Style style);
// What damage keeps a volume closed, and what it costs to go on.
std::string show_recovery(const Json& report);
std::string show_scrub(const Json& report, Style style);

// Members of an object, with what to show when they are missing or of another kind.
std::string text_in(const Json& object, const char* name, std::string otherwise = "-");
uint64_t number_in(const Json& object, const char* name);
bool flag_in(const Json& object, const char* name);
const Json& child_in(const Json& object, const char* name);
// The array `name` of an answer, or the answer itself when it is an array.
const Json& list_in(const Json& answer, const char* name);

}  // namespace peplos::app
