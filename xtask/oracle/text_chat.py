"""Chat templates in the styles models ship, conversations, and what transformers renders for them.

The templates are written here, from how the formats are publicly documented; they use the language
features that real templates use (namespaces, macros, slices, loop controls, white space control,
`tojson` keywords, Python methods), because those are what an engine gets wrong.
"""

BOS, EOS = "<s>", "</s>"

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message comes first, so it is taken out. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You have access to the following functions.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nYou may call one or more functions.\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nReturn a json object within <tool_call></tool_call> XML tags.<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""

PHI3 = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{%- set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"""

TOOLS_MACRO = """{%- macro render(value, depth=0) -%}
{%- if value is mapping -%}
{%- for key, item in value|dictsort -%}
{{ '  ' * depth }}{{ key }}:{% if item is mapping %}{{ '\\n' }}{{ render(item, depth + 1) }}{% else %} {{ item if item is string else item|tojson }}{{ '\\n' }}{% endif %}
{%- endfor -%}
{%- elif value is sequence and value is not string -%}
[{{ value | map('string') | join(', ') }}]
{%- else -%}{{ value }}{%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] %}
## {{ tool.function.name | upper }} ({{ loop.index }}/{{ loop.length }}{{ ', last' if loop.last }})
{{ render(tool.function.parameters) }}
{%- endfor %}
{% for m in messages %}
  {% if m.role == 'system' %}{% continue %}{% endif %}
  {% generation %}
{{ m.role | capitalize }}: {{ m.content | default('(none)', true) | replace('\\n', ' / ') }}
  {%- endgeneration %}

  {% if loop.index >= 4 %}{% break %}{% endif %}
{% endfor %}
{{ messages | map(attribute='role') | unique | sort | join('|') }} {{ messages | length > 2 and 'long' or 'short' }}
{% if (messages | last).content is string %}{{ (messages | last).content.upper().replace('A', '4')[-20:] }}{% endif %}
"""

FEATURES = """{#- comment -#}
{%- set x = {'b': 1, 'a': [1, 2.0, -3, 1e20, 0.00001, true, none, 'ü<&>\\'"']} -%}
{{ x | tojson }}
{{ x | tojson(indent=2) }}
{{ x | tojson(separators=(',', ':')) }}
{{ x | tojson(ensure_ascii=True, sort_keys=True) }}
{{ [] | tojson }}{{ {} | tojson(indent=2) }}{{ "a\\tb\\u2028\\x7f" | tojson }}
{{ none }} {{ true }} {{ 1.0 }} {{ 3 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 7 / 2 }} {{ 1 + 2.5 }} {{ 'a' ~ 1 ~ none }}
{{ 'ab' * 3 }} {{ [1] + [2, 3] }} {{ [0] * 2 }} {{ (1, 2) }} {{ {'k': 'v'} }} {{ 'x' in 'xyz' }} {{ 4 not in [1, 2] }}
{{ 'a,b,c'.split(',') | join('-') }} {{ ' pad '.strip() }}|{{ 'xxhixx'.strip('x') }}|{{ 'Title case'.title() }}
{{ 'hello'.startswith('he') }} {{ 'hello'[1:3] }} {{ 'hello'[::-1] }} {{ [1, 2, 3][-1] }} {{ 'hello' | first }} {{ '%s is %d' | format('x', 5) }}
{{ 'lines\\nof\\ntext' | indent(2) }} {{ 'a b' | replace(' ', '_') | upper }} {{ ['b', 'a'] | sort | first }} {{ [1, 2, 3] | sum }} {{ '5' | int + 1 }}
{% for k, v in x.items() %}{{ loop.index0 }}{{ k }}{{ loop.revindex }}{% if not loop.last %}, {% endif %}{% endfor %}

{% for i in range(3) -%} {{ i }} {%- else %} none {% endfor +%}
  {% if undefined_variable is defined %}yes{% elif x.missing is undefined %}no{% endif %}
{%- set ns = namespace(n=0) %}{% for i in [1, 2, 3] if i != 2 %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}
{{ x.get('zz', 'fallback') }} {{ x['b'] }} {{ x.a | length }} {{ 'y' if x.b == 1 else 'n' }}{{ undefined_variable }}
{{ ['a', 'b'] | map('upper') | list }} {{ [{'n': 1}, {'n': 2}] | selectattr('n', 'gt', 1) | map(attribute='n') | list }} {{ [3, 1] | max }}
{%- filter upper %} shout {% endfilter %}{% set block %}captured {{ x.b }}{% endset %}{{ block }}{{ 'q"' }} {% raw %}{{ raw }}{% endraw %}
{{ "a" "b" }}{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.suffix'.removesuffix('.suffix') }} {{ 1 if false }}{{ [1,2,3] | reject('equalto', 2) | list }} {{ 10 | string + '!' }}
trailing
"""

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather for a city — now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "City's <name>"},
        "days": {"type": "integer", "default": 1}}, "required": ["city"]}}}
TOOL_2 = {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {
          "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}}}
user = lambda text: {"role": "user", "content": text}
assistant = lambda text, **more: {"role": "assistant", "content": text, **more}
system = lambda text: {"role": "system", "content": text}
CALL = {"id": "abc123def", "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}}
CALL_TEXT = {"id": "abc123deg", "type": "function",
             "function": {"name": "add", "arguments": "{\"a\":1, \"b\":2.50}"}}
tool = lambda text, call="abc123def": {"role": "tool", "content": text, "tool_call_id": call, "name": "get_weather"}

CONVERSATIONS = [
    dict(messages=[user("Hi")]),
    dict(messages=[user("Hi")], add_generation_prompt=False),
    dict(messages=[system("Be brief.\n"), user("  What is 2+2? ")]),
    dict(messages=[system("Be brief."), user("Hi"), assistant("Hello! How are you?"), user("Fine.\n\nThanks <b>&</b>")]),
    dict(messages=[user("日本語 😀"), assistant("<think>\nhm\n</think>\n\nはい"), user("次")]),
    dict(messages=[user("Weather?")], tools=[TOOL]),
    dict(messages=[system("S"), user("Weather?"), assistant("", tool_calls=[CALL]), tool("21 C"), assistant("It is 21."),
                   user("And then?")], tools=[TOOL, TOOL_2]),
    dict(messages=[user("Sum"), assistant("Let me.", tool_calls=[CALL, CALL_TEXT]), tool("[1, 2]"), tool("3.5", "abc123deg")],
         tools=[TOOL_2]),
    dict(messages=[user("x")], extra={"enable_thinking": False, "date_string": "21 Nov 2026"}),
    dict(messages=[user("a"), user("b")]),
    dict(messages=[system(""), user("")]),
    dict(messages=[user("one"), assistant("two"), user("three"), assistant("four")], add_generation_prompt=False),
]
PARTS = [dict(messages=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}]}])]

TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "mistral": MISTRAL, "qwen3": QWEN3, "gemma": GEMMA,
             "phi3": PHI3, "deepseek": DEEPSEEK, "macros": TOOLS_MACRO, "features": FEATURES}


def render(template, case):
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        conversations=[case["messages"]], tools=case.get("tools") or None, chat_template=template,
        add_generation_prompt=case.get("add_generation_prompt", True),
        bos_token=BOS, eos_token=EOS, **case.get("extra", {}))
    return rendered[0]


def chat_cases():
    out = []
    for name, template in TEMPLATES.items():
        cases = []
        for case in CONVERSATIONS + (PARTS if name == "gemma" else []):
            if name == "features" and cases:
                break
            try:
                expected = {"text": render(template, case)}
            except Exception as error:
                expected = {"error": str(error)}
            cases.append({**case, **expected})
        out.append({"name": name, "template": template, "cases": cases})
    return out
