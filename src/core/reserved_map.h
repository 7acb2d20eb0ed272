// A std::map from addresses that obtains memory in Reserve alone.
//
// Nodes are made ahead of time, and a node taken out of the map is kept for the
// next entry. So once there is room, no entry is ever refused, and taking one
// out never needs memory. Costs are those of std::map. What changes it is not
// inlined: it is rare, and would take registers from the paths around it.
#ifndef JAX_BFC_CORE_RESERVED_MAP_H_
#define JAX_BFC_CORE_RESERVED_MAP_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace jax_bfc {

template <typename T>
class ReservedMap {
 public:
  using Map = std::map<uintptr_t, T>;
  using const_iterator = typename Map::const_iterator;

  // Room for `n` entries in all; throws std::bad_alloc and keeps what it has.
  void Reserve(size_t n) {
    if (n > spare_.capacity()) {
      spare_.reserve(std::max(n, 2 * spare_.capacity()));
    }
    while (map_.size() + spare_.size() < n) {
      Map one;
      one.emplace();
      spare_.push_back(one.extract(one.begin()));
    }
  }

  // REQUIRES: there is room, and no entry of this address.
  [[gnu::noinline]] void Insert(uintptr_t address, const T& value) {
    Node node = std::move(spare_.back());
    spare_.pop_back();
    node.key() = address;
    node.mapped() = value;
    map_.insert(std::move(node));
  }
  // The entry after the one erased.
  [[gnu::noinline]] const_iterator Erase(const_iterator entry) {
    const const_iterator next = std::next(entry);
    spare_.push_back(map_.extract(entry));
    return next;
  }
  // REQUIRES: there is an entry of this address.
  [[gnu::noinline]] void Erase(uintptr_t address) { Erase(map_.find(address)); }

  const Map& entries() const { return map_; }

 private:
  using Node = typename Map::node_type;

  Map map_;
  std::vector<Node> spare_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_RESERVED_MAP_H_
