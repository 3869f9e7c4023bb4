#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace sparseticket {

// Memory kept by the thread that asks for it, one piece for each `Use`: a fresh one costs a page fault each 4 KiB.
template <class Use>
void* scratch(size_t bytes) {
  struct Memory {
    void* data = nullptr;
    size_t size = 0;
    ~Memory() { std::free(data); }
  };
  static thread_local Memory memory;
  if (memory.size < bytes) {
    std::free(memory.data);
    memory.size = 0;
    memory.data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory.data) throw std::bad_alloc();
    memory.size = bytes;
  }
  return memory.data;
}

}  // namespace sparseticket
