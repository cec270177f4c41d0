#include "docker/door.h"

#include "base/log.h"

namespace peplos::docker {
namespace {

using http::Effect;
using http::Json;
using runtime::Task;

http::Response response_of(unsigned status, const Json& body) {
    return {status, kMediaType, http::print(body) + "\n", {}};
}

http::Response describe(unsigned status, std::string message) {
    return response_of(status, {{"Err", std::move(message)}});
}

// Takes back a mount that came too late, on the node's executor.
Task<void> take_back(fabric::Node* node, std::string name, std::string holder) {
    auto done = co_await node->unmount(name, holder);
    if (!done) {
        LOG_WARN("a late mount was not taken back volume={} error=\"{}\"", name,
                 done.error().text());
    }
}

http::Server::Options server_options(const Options& options) {
    http::Server::Options out;
    out.name = "docker";
    if (options.request_timeout.has_value()) out.request_timeout = *options.request_timeout;
    out.describe = describe;
    return out;
}

}  // namespace

Door::Door(runtime::Executor executor, fabric::Node& node, Options options)
    : executor_(executor),
      node_(node),
      options_(std::move(options)),
      calls_(executor, node.executor()),
      server_(executor, server_options(options_),
              [this](http::Request request) { return handle(std::move(request)); }) {}

Result<void> Door::start() {
    for (http::Fd& fd : options_.activated) {
        server_.serve(std::move(fd), http::Transport::unix_socket);
    }
    for (const std::string& path : options_.socket_paths) {
        TRY_ASSIGN(http::Fd fd, http::listen_on_unix(path));
        server_.serve(std::move(fd), http::Transport::unix_socket);
    }
    return {};
}

Task<void> Door::stop() {
    for (const std::string& path : options_.socket_paths)
        http::remove_socket_file(path);
    server_.refuse_new();
    co_await server_.drain(options_.stop_grace);
    calls_.give_up();
    co_await server_.stop();
}

Task<http::Response> Door::handle(http::Request request) {
    auto call = parse_call(request.method, request.path, request.body);
    if (!call) {
        // Well-formed requests get 200 and `Err`: dockerd prefixes other statuses' texts.
        unsigned status = http::parse_object(request.body).has_value() ? 200 : 400;
        if (call.error().code() == Code::not_found) status = 404;
        co_return response_of(status, answer_error(call.error()));
    }
    if (call->method == Method::activate) {
        Json answer = co_await activate(request.peer);
        co_return response_of(200, answer);
    }
    std::string what = call->name;
    auto answer = co_await run(std::move(*call));
    if (answer) co_return response_of(200, *answer);
    LOG_INFO("a docker call failed call={} volume={} error=\"{}\"", request.path, what,
             answer.error().text());
    co_return response_of(200, answer_error(answer.error()));
}

Task<Result<Json>> Door::run(Call call) {
    fabric::Node* node = &node_;
    std::string name = call.name;
    Duration limit = options_.call_deadline;
    switch (call.method) {
        case Method::activate:
        case Method::capabilities:
            co_return answer_capabilities();
        case Method::create:
            co_return co_await create(std::move(call));
        case Method::mount:
            co_return co_await mount(std::move(call));
        case Method::get:
        case Method::path: {
            auto make = [node, name] { return node->volume(name); };
            std::string what = fmt::format("looking up volume \"{}\"", name);
            CO_TRY_ASSIGN(auto volume, co_await calls_.ask(what, Effect::reads, limit, make));
            if (call.method == Method::get) co_return answer_get(volume);
            co_return answer_path(volume.attach.has_value() ? volume.attach->path : "");
        }
        case Method::list: {
            auto make = [node] { return node->volumes(); };
            std::string what = "listing volumes";
            CO_TRY_ASSIGN(auto volumes, co_await calls_.ask(what, Effect::reads, limit, make));
            co_return answer_list(volumes);
        }
        case Method::unmount: {
            auto make = [node, name, holder = call.holder] { return node->unmount(name, holder); };
            std::string what = fmt::format("unmounting volume \"{}\"", name);
            CO_TRY(co_await calls_.ask(what, Effect::changes, limit, make));
            co_return answer_ok();
        }
        case Method::remove: {
            auto make = [node, name] { return node->remove_volume(name); };
            std::string what = fmt::format("removing volume \"{}\"", name);
            CO_TRY(co_await calls_.ask(what, Effect::changes, limit, make));
            co_return answer_ok();
        }
    }
    co_return fail(Code::unsupported, "this method is not served");
}

Task<Result<Json>> Door::create(Call call) {
    CO_TRY_ASSIGN(fabric::VolumeSpec spec, spec_of(call.name, call.options));
    fabric::Node* node = &node_;
    auto make = [node, spec] { return node->create_volume(spec); };
    std::string what = fmt::format("creating volume \"{}\"", call.name);
    auto created = co_await calls_.ask(what, Effect::changes, options_.call_deadline, make);
    if (created) co_return answer_ok();
    // Without options the user asks for "this volume", however it was made: dockerd sends that
    // after a Get that failed for a moment.
    if (call.options.empty() && created.error().code() == Code::already_exists) {
        co_return answer_ok();
    }
    co_return fail(std::move(created).error());
}

Task<Result<Json>> Door::mount(Call call) {
    fabric::Node* node = &node_;
    std::string name = call.name;
    std::string holder = call.holder;
    auto make = [node, name, holder] { return node->mount(name, holder); };
    auto late = [node, name, holder](Result<std::string> path) {
        // dockerd was told that this mount failed and will never unmount it.
        if (path) runtime::spawn(node->executor(), take_back(node, name, holder));
    };
    std::string what = fmt::format("mounting volume \"{}\"", name);
    CO_TRY_ASSIGN(std::string path,
                  co_await calls_.ask(what, Effect::changes, options_.mount_deadline, make, late));
    co_return answer_path(path);
}

// dockerd activates a plugin once in its life; a connection it lost may make it ask again, which
// is told apart by the process that asks.
Task<Json> Door::activate(std::optional<http::PeerProcess> peer) {
    bool same_life = peer.has_value() && dockerd_ == peer;
    dockerd_ = peer;
    if (!same_life) {
        LOG_INFO("docker activated the plugin pid={}", peer.has_value() ? peer->pid : 0);
        fabric::Node* node = &node_;
        auto make = [node] { return node->forget_holders(); };
        std::string what = "forgetting the mounts of an earlier dockerd";
        auto done = co_await calls_.ask(what, Effect::changes, options_.call_deadline, make);
        if (!done) LOG_WARN("{}", done.error().text());
    }
    co_return answer_activate();
}

}  // namespace peplos::docker
