#pragma once

#include <span>
#include <string>
#include <string_view>

#include "api/messages.h"
#include "fabric/node.h"
#include "http/calls.h"
#include "runtime/task.h"

// The routes of the REST interface: one table, from which requests are dispatched and
// /openapi.json is made, so that the document cannot lie about them.
namespace peplos::api {

// What a client on the loopback port has to show. The Unix socket is root's alone and needs
// nothing more.
enum class Access : uint8_t { open, token };

struct Answer {
    std::string content_type = "application/json";
    std::string body;
};

class Routes {
  public:
    struct Call {
        std::string name;  // the {name} of the path, decoded and checked; or empty
        Json body;         // an object; empty where the route takes none
    };
    struct Route {
        std::string_view method;
        std::string_view path;  // "/v1/volumes/{name}"
        Access access;
        unsigned status;                   // of success
        std::string_view request_schema;   // name in openapi.cc; empty: no body
        std::string_view response_schema;  // name in openapi.cc; empty: see content_type
        Duration limit;                    // how long the node may take
        std::string_view summary;
        runtime::Task<Result<Answer>> (Routes::*run)(Call, Duration);
    };
    static std::span<const Route> table();

    struct Match {
        const Route* route = nullptr;
        std::string name;     // as sent, still percent-encoded
        std::string allowed;  // where only the method is wrong: the right ones, for Allow
    };
    // `raw_path` is split before it is decoded, so a %2F stays part of a name.
    static Match match(std::string_view method, std::string_view raw_path);

    Routes(fabric::Node& node, http::Calls& calls) : node_(&node), calls_(calls) {}

  private:
    runtime::Task<Result<Answer>> healthz(Call call, Duration limit);
    runtime::Task<Result<Answer>> openapi(Call call, Duration limit);
    runtime::Task<Result<Answer>> metrics(Call call, Duration limit);
    runtime::Task<Result<Answer>> status(Call call, Duration limit);
    runtime::Task<Result<Answer>> doctor(Call call, Duration limit);
    runtime::Task<Result<Answer>> leftovers(Call call, Duration limit);
    runtime::Task<Result<Answer>> mend_leftovers(Call call, Duration limit);
    runtime::Task<Result<Answer>> list_volumes(Call call, Duration limit);
    runtime::Task<Result<Answer>> create_volume(Call call, Duration limit);
    runtime::Task<Result<Answer>> get_volume(Call call, Duration limit);
    runtime::Task<Result<Answer>> grow_volume(Call call, Duration limit);
    runtime::Task<Result<Answer>> remove_volume(Call call, Duration limit);
    runtime::Task<Result<Answer>> recover_volume(Call call, Duration limit);
    runtime::Task<Result<Answer>> trim_volume(Call call, Duration limit);
    runtime::Task<Result<Answer>> detach_volume(Call call, Duration limit);
    runtime::Task<Result<Answer>> list_devices(Call call, Duration limit);
    runtime::Task<Result<Answer>> add_device(Call call, Duration limit);
    runtime::Task<Result<Answer>> start_scrub(Call call, Duration limit);
    runtime::Task<Result<Answer>> scrub_report(Call call, Duration limit);

    fabric::Node* node_;
    http::Calls& calls_;
};

// The OpenAPI 3.0 description of Routes::table().
Json openapi_document();

}  // namespace peplos::api
