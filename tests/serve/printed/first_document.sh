# The commands of the first document as they are printed there; only line breaks lost in print are put back.

## checkout
curl -X POST "$API_BASE/api/v1/checkout/stripe" \
-H "Content-Type: application/json" \
-d '{
"email": "dev@company.com",
"packageCode": "builder_600"
}'

## claim
curl -X POST "$API_BASE/api/v1/claim/stripe" \
-H "Content-Type: application/json" \
-d '{
"sessionId": "cs_test_...",
"keyLabel": "Primary key"
}'

## create a key
curl -X POST "$API_BASE/api/v1/keys" \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{
"label": "Agent Worker A"
}'

## list keys
curl -X GET "$API_BASE/api/v1/keys" \
-H "Authorization: Bearer $API_KEY"

## revoke a key
curl -X POST "$API_BASE/api/v1/keys/revoke" \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{
"keyPrefix": "abcde"
}'

## balance
curl -X GET "$API_BASE/api/v1/credits/balance" \
-H "Authorization: Bearer $API_KEY"

## image.generate
curl -X POST "$API_BASE/api/v1/media/jobs" \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-H "X-Idempotency-Key: job-001" \
-d '{
"task": "image.generate",
"input": {
"prompt": "cinematic fox astronaut",
"aspectRatio": "1:1"
},
"creditsToConsume": 1
}'

## image.edit
curl -X POST "$API_BASE/api/v1/media/jobs" \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{
"task": "image.edit",
"input": {
"prompt": "turn this scene into a dramatic noir poster",
"sourceImageUrl": "https://cdn.example.com/input/source.webp",
"aspectRatio": "9:16"
}
}'

## video.generate
curl -X POST "$API_BASE/api/v1/media/jobs" \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{
"task": "video.generate",
"input": {
"prompt": "slow cinematic push-in with floating particles",
"sourceImageUrl": "https://cdn.example.com/input/source.webp",
"durationSeconds": 6,
"aspectRatio": "16:9"
}
}'

## audio.speak
curl -X POST "$API_BASE/api/v1/media/jobs" \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{
"task": "audio.speak",
"input": {
"text": "Welcome to the API gateway.",
"voiceDescription": "Warm, energetic narrator with clear pacing.",
"language": "English"
}
}'

## image.generate again
curl -X POST "$API_BASE/api/v1/media/jobs" \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-H "X-Idempotency-Key: job-001" \
-d '{
"task": "image.generate",
"input": {
"prompt": "cinematic fox astronaut",
"aspectRatio": "1:1"
},
"creditsToConsume": 1,
"idempotencyKey": "job-001"
}'
