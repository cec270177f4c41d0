// The managed Docker plugin: hands every call of dockerd to the host's peplosd and makes the
// mounted volumes visible below propagatedMount. It holds no state and no data path: it may be
// upgraded, killed or restarted while containers use their volumes.
//
// Mounts. peplosd mounts a volume below its run_dir, which this plugin sees at /host. Mount binds
// that directory to /mnt/volumes/NAME, which Docker propagates to the host; containers hold mounts
// of their own from then on. Before the last holder's Unmount is passed on the bind is taken away,
// or peplosd would find the volume busy for ever.
//
// A plain program of blocking threads: dockerd opens a handful of connections.

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <signal.h>
#include <string>
#include <string_view>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

namespace {

using Json = nlohmann::json;

constexpr const char* kListenPath = "/run/docker/plugins/peplos.sock";
constexpr const char* kHostDirectory = "/host";
constexpr const char* kVolumesDirectory = "/mnt/volumes";
constexpr size_t kHeaderBytesMax = 16 * 1024;
constexpr size_t kBodyBytesMax = 1024 * 1024;
// peplosd answers within seconds; dockerd gives up after 30.
constexpr int kTimeoutSeconds = 28;
constexpr int kConnectionCountMax = 256;

std::string environment(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0' ? value : otherwise;
}

class Socket {
  public:
    explicit Socket(int fd) : fd_(fd) {}
    Socket(const Socket&) = delete;
    Socket& operator=(const Socket&) = delete;
    ~Socket() {
        if (fd_ >= 0) ::close(fd_);
    }
    int fd() const { return fd_; }

    bool send_all(std::string_view bytes) const {
        while (!bytes.empty()) {
            ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent < 0 && errno == EINTR) continue;
            if (sent <= 0) return false;
            bytes.remove_prefix(static_cast<size_t>(sent));
        }
        return true;
    }
    // Appends what has come; false at the end of the stream or on an error.
    bool receive_some(std::string& into) const {
        char buffer[16 * 1024];
        ssize_t got = 0;
        do {
            got = ::recv(fd_, buffer, sizeof buffer, 0);
        } while (got < 0 && errno == EINTR);
        if (got <= 0) return false;
        into.append(buffer, static_cast<size_t>(got));
        return true;
    }

  private:
    int fd_;
};

struct Message {
    std::string first_line;
    std::string body;
};

// The value of Content-Length, 0 when absent; nullopt when it is no number or chunked is asked for.
std::optional<size_t> content_length(std::string_view header) {
    size_t length = 0;
    size_t at = header.find("\r\n");
    while (at != std::string_view::npos && at + 2 < header.size()) {
        size_t end = header.find("\r\n", at + 2);
        std::string line(header.substr(at + 2, end == std::string_view::npos ? end : end - at - 2));
        for (char& c : line)
            c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        if (line.starts_with("transfer-encoding:")) return std::nullopt;
        if (line.starts_with("content-length:")) {
            char* stop = nullptr;
            errno = 0;
            length = std::strtoull(line.c_str() + 15, &stop, 10);
            if (errno != 0 || *stop != '\0' || length > kBodyBytesMax) return std::nullopt;
        }
        at = end;
    }
    return length;
}

// Reads one message; `rest` keeps what came after it.
std::optional<Message> read_message(const Socket& socket, std::string& rest) {
    size_t end = std::string::npos;
    while ((end = rest.find("\r\n\r\n")) == std::string::npos) {
        if (rest.size() > kHeaderBytesMax || !socket.receive_some(rest)) return std::nullopt;
    }
    std::string header = rest.substr(0, end);
    auto length = content_length(header);
    if (!length) return std::nullopt;
    while (rest.size() < end + 4 + *length) {
        if (!socket.receive_some(rest)) return std::nullopt;
    }
    Message message{header.substr(0, header.find("\r\n")), rest.substr(end + 4, *length)};
    rest.erase(0, end + 4 + *length);
    return message;
}

// Asks peplosd. The answer is always an object; one with "Err" says what went wrong.
Json ask_host(const std::string& method, const std::string& body) {
    std::string path =
        std::string(kHostDirectory) + "/" + environment("PEPLOS_SOCKET", "plugin.sock");
    auto failed = [&path](const std::string& what) {
        return Json{{"Err", "the Peplos plugin cannot reach the host's peplosd at " + path + " (" +
                                what + "); on the host see: peplos doctor"}};
    };
    Socket socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) return failed("the path is too long");
    std::memcpy(address.sun_path, path.c_str(), path.size());
    timeval limit{.tv_sec = kTimeoutSeconds, .tv_usec = 0};
    ::setsockopt(socket.fd(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(socket.fd(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (::connect(socket.fd(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
        return failed(std::strerror(errno));
    }
    std::string request = "POST /" + method + " HTTP/1.1\r\nHost: peplos\r\nContent-Length: " +
                          std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" + body;
    if (!socket.send_all(request)) return failed("it closed the connection");
    std::string rest;
    auto answer = read_message(socket, rest);
    if (!answer) return failed("no answer within 28 s");
    Json json = Json::parse(answer->body, nullptr, false);
    if (!json.is_object()) return failed("its answer was no JSON object");
    return json;
}

std::string text_of(const Json& object, const char* name) {
    auto found = object.find(name);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// A path of the host as a path that this plugin may bind; empty when it lies elsewhere.
std::string seen_from_here(const std::string& host_path) {
    std::string run_dir = environment("PEPLOS_RUN_DIR", "/run/peplos");
    if (!host_path.starts_with(run_dir + "/") || host_path.find("/..") != std::string::npos) {
        return "";
    }
    return kHostDirectory + host_path.substr(run_dir.size());
}

// Where the volume mounted at `host_path` is bound: one directory per path.
std::string target_of(const std::string& host_path) {
    std::string run_dir = environment("PEPLOS_RUN_DIR", "/run/peplos");
    std::string name = host_path.substr(std::min(host_path.size(), run_dir.size() + 1));
    for (char& c : name) {
        if (c == '/') c = '-';
    }
    return std::string(kVolumesDirectory) + "/" + name;
}

bool is_mounted(const std::string& directory) {
    std::ifstream mounts("/proc/self/mountinfo");
    std::string line;
    while (std::getline(mounts, line)) {
        if (line.find(" " + directory + " ") != std::string::npos) return true;
    }
    return false;
}

// Returns an error text, empty on success.
std::string bind_volume(const std::string& host_path) {
    std::string source = seen_from_here(host_path);
    std::string target = target_of(host_path);
    if (source.empty())
        return "peplosd mounted the volume at " + host_path + ", outside its run_dir";
    if (is_mounted(target)) return "";
    if (::mkdir(target.c_str(), 0700) != 0 && errno != EEXIST) {
        return "cannot make " + target + ": " + std::strerror(errno);
    }
    if (::mount(source.c_str(), target.c_str(), nullptr, MS_BIND, nullptr) != 0) {
        return "cannot bind " + source + " to " + target + ": " + std::strerror(errno);
    }
    return "";
}

void unbind_volume(const std::string& host_path) {
    std::string target = target_of(host_path);
    if (is_mounted(target)) ::umount2(target.c_str(), MNT_DETACH);
    ::rmdir(target.c_str());
}

// True when nobody but `id` holds the volume: its bind may go.
bool is_last_holder(const Json& volume, const std::string& id) {
    const Json& status = volume.contains("Status") ? volume["Status"] : Json::object();
    if (!status.is_object() || !status.contains("holders")) return true;
    const Json& holders = status["holders"];
    if (!holders.is_array()) return true;
    for (const Json& holder : holders) {
        if (holder.is_string() && holder.get<std::string>() != id) return false;
    }
    return true;
}

// Mount and Unmount of one volume follow each other: an Unmount that looks while a Mount of
// another container is under way would take its bind away.
std::shared_ptr<std::mutex> lock_of(const std::string& name) {
    static std::mutex guard;
    static std::map<std::string, std::weak_ptr<std::mutex>> locks;
    std::lock_guard hold(guard);
    std::erase_if(locks, [](const auto& entry) { return entry.second.expired(); });
    std::shared_ptr<std::mutex> lock = locks[name].lock();
    if (lock == nullptr) {
        lock = std::make_shared<std::mutex>();
        locks[name] = lock;
    }
    return lock;
}

void translate(Json& object) {
    std::string path = text_of(object, "Mountpoint");
    if (!path.empty()) object["Mountpoint"] = target_of(path);
}

Json mount_volume(const std::string& body) {
    Json answer = ask_host("VolumeDriver.Mount", body);
    std::string path = text_of(answer, "Mountpoint");
    if (path.empty()) return answer;
    std::string problem = bind_volume(path);
    if (!problem.empty()) {
        ask_host("VolumeDriver.Unmount", body);
        return Json{{"Err", problem}};
    }
    translate(answer);
    return answer;
}

Json unmount_volume(const std::string& name, const std::string& id, const std::string& body) {
    Json answer = ask_host("VolumeDriver.Get", Json{{"Name", name}}.dump());
    if (answer.contains("Volume") && answer["Volume"].is_object()) {
        std::string path = text_of(answer["Volume"], "Mountpoint");
        if (!path.empty() && is_last_holder(answer["Volume"], id)) unbind_volume(path);
    }
    return ask_host("VolumeDriver.Unmount", body);
}

Json answer_of(const std::string& method, const std::string& body) {
    if (method == "VolumeDriver.Mount" || method == "VolumeDriver.Unmount") {
        Json request = Json::parse(body, nullptr, false);
        std::string name = request.is_object() ? text_of(request, "Name") : "";
        if (name.empty()) return Json{{"Err", method + " needs a volume name"}};
        std::shared_ptr<std::mutex> lock = lock_of(name);
        std::lock_guard hold(*lock);
        if (method == "VolumeDriver.Mount") return mount_volume(body);
        return unmount_volume(name, text_of(request, "ID"), body);
    }
    Json answer = ask_host(method, body);
    translate(answer);
    if (answer.contains("Volume") && answer["Volume"].is_object()) translate(answer["Volume"]);
    if (answer.contains("Volumes") && answer["Volumes"].is_array()) {
        for (Json& volume : answer["Volumes"]) {
            if (volume.is_object()) translate(volume);
        }
    }
    return answer;
}

void serve(int fd, [[maybe_unused]] std::shared_ptr<void> place) {
    Socket socket(fd);
    std::string rest;
    while (auto request = read_message(socket, rest)) {
        size_t begin = request->first_line.find('/');
        size_t end = request->first_line.find(' ', begin == std::string::npos ? 0 : begin);
        if (!request->first_line.starts_with("POST ") || begin == std::string::npos) return;
        std::string method = request->first_line.substr(begin + 1, end - begin - 1);
        if (method.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.") !=
            std::string::npos) {
            return;
        }
        std::string body =
            answer_of(method, request->body).dump(-1, ' ', false, Json::error_handler_t::replace) +
            "\n";
        std::string answer =
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.plugins.v1.2+json\r\n"
            "Content-Length: " +
            std::to_string(body.size()) + "\r\n\r\n" + body;
        if (!socket.send_all(answer)) return;
    }
}

int listen_for_docker() {
    ::unlink(kListenPath);
    int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, kListenPath, sizeof address.sun_path - 1);
    ::umask(0177);
    bool ok = fd >= 0 && ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
              ::listen(fd, 128) == 0;
    ::umask(0077);
    return ok ? fd : -1;
}

}  // namespace

int main() {
    ::signal(SIGPIPE, SIG_IGN);
    // The first process of its container gets no default action: without a handler dockerd would
    // wait 10 s, then kill it. There is nothing to tidy up: the mounts are the host's.
    for (int number : {SIGTERM, SIGINT})
        ::signal(number, [](int) { ::_exit(0); });
    int listener = listen_for_docker();
    if (listener < 0) {
        std::fprintf(stderr, "peplos-plugin: cannot listen on %s: %s\n", kListenPath,
                     std::strerror(errno));
        return 1;
    }
    // dockerd restarts its plugins when it starts, and never activates a managed one: what held
    // volumes in its earlier life will not be unmounted. peplosd asks the kernel what is in use.
    ask_host("Plugin.Activate", "");
    auto everybody = std::make_shared<int>(0);
    while (true) {
        int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        if (fd < 0) continue;
        if (everybody.use_count() > kConnectionCountMax) {
            ::close(fd);
            continue;
        }
        std::thread(serve, fd, everybody).detach();
    }
}
