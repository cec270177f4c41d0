#pragma once

#include <span>
#include <string_view>

#include "model/world.h"

namespace peplos::model {

// The configurations that `peplos-model` searches, each to its end.
std::span<const Scope> scopes();
const Scope* find_scope(std::string_view name);

// A planted mistake of the protocol (base/fault.h), and the configuration that finds it.
struct Mistake {
    std::string_view name;
    std::string_view scope;
    std::string_view what;
};
std::span<const Mistake> mistakes();

}  // namespace peplos::model
