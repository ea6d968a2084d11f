# The Model Context Protocol's own client (the package mcp of PyPI) uses the server as an agent would.
# Called by mcp.rs with the path of banger.
import asyncio
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


def text(result):
    return result.content[0].text


async def main():
    server = StdioServerParameters(command=sys.argv[1], args=["mcp"], env=dict(os.environ))
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        hello = await session.initialize()
        info = getattr(hello, "serverInfo", None) or hello.server_info
        print(info.name)
        names = {tool.name for tool in (await session.list_tools()).tools}
        assert {"vm_run", "vm_exec", "vm_delete", "file_read", "workspace_export"} <= names, names
        await session.call_tool("vm_run", {"name": "new"})
        ran = json.loads(text(await session.call_tool("vm_exec", {"vm": "demo", "command": ["both"]})))
        print("exit_status", ran["exit_status"])
        failed = await session.call_tool("vm_exec", {"vm": "nobody", "command": ["true"]})
        is_error = failed.isError if hasattr(failed, "isError") else failed.is_error
        print("failed" if is_error else text(failed))
        await session.call_tool("file_write", {"vm": "demo", "path": "/root/x", "text": "written"})
        print(text(await session.call_tool("file_read", {"vm": "demo", "path": "/root/x"})))
        await session.call_tool("vm_delete", {"vm": "new"})


asyncio.run(main())
