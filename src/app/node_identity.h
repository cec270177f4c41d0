#pragma once

#include <memory>
#include <string>

#include "base/ids.h"
#include "base/result.h"

namespace peplos::app {

// Who this node is, in a file of its state folder. A control store on another machine serves
// whoever asks: the file is what tells the cluster's node from a newcomer, and its lock keeps a
// second daemon with the same folder away, as the embedded store's own lock does.
class NodeIdentity {
  public:
    // Makes the file, durably, where there is none; `wanted` is the id then, or a random one.
    // Errors: busy (another daemon runs with it), corrupt, no_space, permission_denied, io_error.
    static Result<std::unique_ptr<NodeIdentity>> open(const std::string& state_dir,
                                                      NodeId wanted = {});
    static std::string path_in(const std::string& state_dir);

    NodeIdentity(const NodeIdentity&) = delete;
    NodeIdentity& operator=(const NodeIdentity&) = delete;
    ~NodeIdentity();

    NodeId id() const { return id_; }

  private:
    explicit NodeIdentity(int fd) : fd_(fd) {}
    Result<void> read_or_make(const std::string& path, NodeId wanted);

    int fd_;
    NodeId id_;
};

}  // namespace peplos::app
